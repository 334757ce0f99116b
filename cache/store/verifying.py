"""Verification: everything is read again and compared with its checksums."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import Broken
from ..files.atomic import LEFTOVER
from ..files.checksum import PIECE_BYTES, crc32c
from ..files.failing_disk import io_errors_as_damaged
from ..format.manifest import MANIFEST_FILE, is_as_written, read_manifest
from ..format.open_files import OpenFiles
from ..format.part import ROWS_FILE, Layout, Part, read_part, rows_in


@dataclass(frozen=True)
class Damage:
    """A damaged row or file of a store; `key` is None if it is not a single row."""

    part: Path
    key: str | None
    what: str


def verify_part(
    path: Path,
    layout: Layout,
    *,
    store: str,
    wanted: Set[str] | None,
    share: float = 1.0,
    indexed: Set[str] = frozenset(),
) -> list[Damage]:
    """Read the part at `path` (or its rows of `wanted`); return what is damaged in it.

    A part that is removed meanwhile has no damage: its rows have moved or are unused.

    Args:
        share: of the rows that are read, drawn anew every time.
        indexed: names of parts that were complete once, as an index says.
    """
    try:
        found = list(_damages(path, layout, store, wanted=wanted, share=share, indexed=indexed))
    except FileNotFoundError:
        if path.exists():
            raise
        return []
    return found if path.exists() else []


def _damages(
    path: Path,
    layout: Layout,
    store: str,
    *,
    wanted: Set[str] | None,
    share: float,
    indexed: Set[str],
) -> Iterator[Damage]:
    try:
        listing = read_part(path, layout, store=store)
    except Broken as error:
        yield Damage(path, None, str(error))
        return
    if listing is None:
        if path.name in indexed or _has_lost_its_manifest(path):
            yield Damage(path, None, f"{MANIFEST_FILE} is missing")
        return
    if wanted is None:
        yield from (Damage(path, None, what) for what in _broken_files(path))
    part = Part(path, layout, listing.grids[0], files=OpenFiles(1))  # as they are on the disk now
    space = np.empty(PIECE_BYTES, np.uint8)
    for key, row in rows_in(listing):
        if (wanted is None or key in wanted) and (share >= 1.0 or random.random() < share):
            try:
                part.check(row, space)
            except Broken as error:
                yield Damage(path, key, str(error))


def _has_lost_its_manifest(path: Path) -> bool:
    """Return whether a part without a manifest was complete once, rather than unfinished.

    As long as it is written, and after its writer has died, the manifest lies there under the
    name of a leftover. That of a part which is done this very moment has just been renamed.
    """
    names = os.listdir(path) if path.is_dir() else []
    if ROWS_FILE not in names or any(name.endswith(LEFTOVER) for name in names):
        return False
    return not (path / MANIFEST_FILE).exists()


def _broken_files(path: Path) -> Iterator[str]:
    """Yield what is wrong with the files of a part, without looking at its rows."""
    manifest = read_manifest(path)
    if manifest is None:
        yield f"{MANIFEST_FILE} is missing"
        return
    if not is_as_written(path):
        yield f"the file {MANIFEST_FILE} is not as it was written"
    for name, size in manifest.files.items():
        what = _broken_file(path / name, size, checksum=manifest.checksums.get(name))
        if what:
            yield f"the file {name} {what}"


def _broken_file(file: Path, size: int, *, checksum: int | None) -> str:
    """Return what is wrong with a file, given its size in bytes and checksum; "" if nothing is."""
    try:
        with io_errors_as_damaged():
            if not file.is_file():
                return "is missing"
            if file.stat().st_size != size:
                return f"has {file.stat().st_size} bytes instead of {size}"
            if checksum is not None and crc32c(file.read_bytes()) != checksum:
                return "does not match its checksum"
    except Broken as error:
        return f"is lost: {error}"
    return ""
