"""Unfinished files of dead processes, and of processes on unreachable hosts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files.atomic import LEFTOVER, owner_of
from ..files.owner import Owner, can_be_asked, is_dead, lives_here
from ..format.manifest import MANIFEST_FILE

RECENT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Leftover:
    """An unfinished file or tree at `path`, and the process that began it."""

    path: Path
    owner: Owner

    def __str__(self) -> str:
        of = f"process {self.owner.pid} on {self.owner.host}"
        if is_dead(self.owner):
            return f"left by {of}, which has ended"
        return f"left by {of}, which cannot be asked from here: make sure that it runs no more"


def leftovers_in(folder: Path) -> Iterator[Leftover]:
    """Yield the entries of `folder` with temporary names, except those of live local processes."""
    for path in _entries(folder):
        owner = owner_of(path.name) if path.name.endswith(LEFTOVER) else None
        if owner is not None and not lives_here(owner):
            yield Leftover(path, owner)


def unfinished_parts(parts: Path) -> Iterator[Leftover]:
    """Yield parts without a manifest, except those of live local processes."""
    for path in _entries(parts):
        owner = None if path.name.endswith(LEFTOVER) else owner_of(path.name)
        if owner is None or lives_here(owner) or (path / MANIFEST_FILE).exists():
            continue
        yield Leftover(path, owner)


def may_be_at_work(leftover: Leftover) -> bool:
    """Return whether its writer may still run: it cannot be asked, and wrote within a day.

    For what no lock tells of. A change at a time to come, by a clock that jumps or by another
    host's, counts as recent.
    """
    return not can_be_asked(leftover.owner) and seconds_unchanged(leftover.path) < RECENT_SECONDS


def seconds_unchanged(path: Path) -> float:
    """Return the age in seconds of the last change at `path`; negative if it lies in the future."""
    newest = 0.0
    for where, _, names in os.walk(path):
        for entry in (Path(where), *(Path(where, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):  # its writer is at work this moment
                newest = max(newest, entry.lstat().st_mtime)
    with contextlib.suppress(FileNotFoundError):
        newest = max(newest, path.lstat().st_mtime)
    return time.time() - newest


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
