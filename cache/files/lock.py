"""One writer at a time: an owner file that a dead owner's successor takes over."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Broken, Locked
from .atomic import create, readable_json, remove, sweep, write_bytes
from .fingerprint import digest_bytes
from .json_file import read_object
from .owner import Owner, is_dead, this_process

LOCK_FILE = "writer.json"
CLAIM = ".after-"
SHORTEST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.2

_count = itertools.count()
_Held = TypeVar("_Held")


@dataclass(frozen=True)
class Holder:
    """The holder of a lock and its purpose; `turn` tells two locks of one process apart."""

    owner: Owner
    turn: int
    doing: str
    since: str

    def __str__(self) -> str:
        owner = self.owner
        return f"process {owner.pid} on {owner.host} ({self.doing}, since {self.since})"

    def as_bytes(self) -> bytes:
        return readable_json(asdict(self)).encode()


@contextlib.contextmanager
def writer_lock(folder: Path, *, doing: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Be the only writer in `folder` while the block runs; remove dead writers' leftovers first.

    Args:
        patience_seconds: how long to wait for another writer to finish.

    Raises:
        Locked: another process is; the message names it. One that has died on this host
            does not count: its lock is taken over.
    """
    path, me = folder / LOCK_FILE, new_holder(doing)
    give_up = time.monotonic() + patience_seconds
    pause = SHORTEST_PAUSE_SECONDS
    while True:
        try:
            _acquire(path, me)
            break
        except Locked:
            if time.monotonic() >= give_up:
                raise
        # not all at once again: processes that wait for one lock must not march in step
        time.sleep(pause * (0.5 + random.random()))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    try:
        sweep(folder)
        _sweep_claims(folder)
        yield
    finally:
        if _holder(path) == me:  # else somebody has unlocked it by hand
            remove(path)


def new_holder(doing: str) -> Holder:
    """Return this process as a holder, since now."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Holder(this_process(), next(_count), doing, since)


def holder_of(folder: Path) -> Holder | None:
    """Return the holder of the lock of `folder`; None if it is free."""
    return _holder(folder / LOCK_FILE)


def at_work(folder: Path | str, what: str) -> Locked:
    """Return the error that `folder` is being `what`: "written by" the holder of its lock."""
    return Locked(
        f"{folder} is being {what}.",
        "Wait for it, or end it. If you know that it runs no more: `qedit unlock`.",
    )


def _acquire(path: Path, me: Holder) -> None:
    """Make the file at `path` name `me`, if it does not exist or names a dead process."""
    while not create(path, me.as_bytes()):
        other = _holder(path)
        if other is None:
            continue  # released this very moment
        if not is_dead(other.owner):
            raise at_work(path.parent, f"written by {other}")
        if _succeed(path, other, me):
            return


def _succeed(path: Path, dead: Holder, me: Holder) -> bool:
    """Replace `dead` by `me`; return False if another process was faster.

    Only who holds the claim to this very dead holder's place may replace the file: whoever
    gets the claim later finds another name in it. A claim is a lock like any other, so one
    that was left by a process that died here is taken over in the same way.
    """
    claim = path.with_name(f"{path.name}{CLAIM}{digest_bytes(dead.as_bytes())[:16]}")
    _acquire(claim, me)
    try:
        if _holder(path) != dead:
            return False
        write_bytes(path, me.as_bytes())
        return True
    finally:
        remove(claim)


def _sweep_claims(folder: Path) -> None:
    """Remove succession claims whose makers have died."""
    for claim in folder.glob(f"{LOCK_FILE}{CLAIM}*"):
        claimant = _holder(claim)
        if claimant is not None and is_dead(claimant.owner):
            remove(claim)


def _holder(path: Path) -> Holder | None:
    """Return the holder in the file at `path`; None if there is no such file."""
    return read_held(path, holder_from)


def holder_from(fields: dict[str, Any]) -> Holder:
    """Return the holder in the fields of a lock's or a claim's file."""
    return Holder(**{**fields, "owner": Owner(**fields["owner"])})


def read_held(path: Path, parse: Callable[[dict[str, Any]], _Held]) -> _Held | None:
    """Return what `parse` makes of the JSON of a lock or a claim; None if there is no such file.

    Raises:
        Locked: the file cannot be read.
    """
    try:
        return parse(read_object(path))
    except FileNotFoundError:
        return None
    except (Broken, TypeError, KeyError) as error:
        raise Locked(
            f"{path} says that another qedit is at work there, but it cannot be read: {error}.",
            f"If no other qedit is at work there, delete {path}.",
        ) from error
