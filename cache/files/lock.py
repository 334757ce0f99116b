"""One writer at a time: an owner file that a dead owner's successor takes over."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ..errors import Locked
from .atomic import create, readable_json, remove, sweep, write_bytes
from .fingerprint import digest_bytes
from .owner import Owner, is_dead, this_process

LOCK_FILE = "writer.json"
CLAIM = ".after-"
SHORTEST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.2

_count = itertools.count()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and for what; `turn` tells two locks of one process apart."""

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
    """Be the only writer in `folder` while the block runs; what dead ones left there goes first.

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
    """This process, about to do something."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Holder(this_process(), next(_count), doing, since)


def holder_of(folder: Path) -> Holder | None:
    """Who has the lock of `folder`; None if nobody has."""
    return _holder(folder / LOCK_FILE)


def _acquire(path: Path, me: Holder) -> None:
    """Make the file at `path` name `me`, if it names nobody or somebody dead."""
    while not create(path, me.as_bytes()):
        other = _holder(path)
        if other is None:
            continue  # released this very moment
        if not is_dead(other.owner):
            raise Locked(
                f"{path.parent} is being written by {other}.",
                "Wait for it, or end it. If you know that it runs no more: `qedit unlock`.",
            )
        if _succeed(path, other, me):
            return


def _succeed(path: Path, dead: Holder, me: Holder) -> bool:
    """Put `me` in the place of `dead`; False if somebody else was faster.

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
    """Remove the claims to former holders' places that died with those who made them."""
    for claim in folder.glob(f"{LOCK_FILE}{CLAIM}*"):
        claimant = _holder(claim)
        if claimant is not None and is_dead(claimant.owner):
            remove(claim)


def _holder(path: Path) -> Holder | None:
    """Who is named in the file at `path`; None if there is no such file."""
    try:
        named = json.loads(path.read_bytes())
        return Holder(**{**named, "owner": Owner(**named["owner"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise Locked(
            f"{path} says that somebody is writing there, but it cannot be read: {error}.",
            f"If no other qedit is at work there, delete {path}.",
        ) from error
