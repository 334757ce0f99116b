"""Who computes what: so that several processes fill one store and none does another's work.

To add rows takes no lock, because every part has a name of its own. What is to be computed
is claimed first: a small file under `claims/` names the process and the keys. Claims are
made one at a time, under the writer lock, and those of dead processes are removed. Who
removes rows holds the writer lock and waits for no claim: there must be none.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import Locked
from .atomic import make_folder, remove, sweep, unique_name, write_json
from .lock import Holder, new_holder, writer_lock
from .owner import Owner, is_dead

CLAIMS = "claims"
LOCK_PATIENCE_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class Claim:
    """The keys that a process computes at the moment, as the file at `path` says."""

    path: Path
    holder: Holder
    keys: frozenset[str]


@dataclass(frozen=True)
class Task:
    """Keys to compute, in order, that no other process is at until `release`."""

    keys: list[str]
    claim: Claim

    def release(self) -> None:
        """Let others have what is still missing of it."""
        remove(self.claim.path)


def shared_work(
    folder: Path,
    batches: Iterable[Sequence[str]],
    *,
    doing: str,
    still: Callable[[Sequence[str]], list[str]],
    waiting: Callable[[Holder], None],
) -> Iterator[list[str]]:
    """Give the keys of batch after batch to compute, until none is missing.

    While the caller computes what it was given, no other process is given the same. Batches
    that others are at are looked at again at the end: what a process that has died did not
    finish is given out anew.

    Args:
        folder: of the store.
        still: which of some keys are missing, as it is now.
        waiting: told, whenever all that is left is others' work, who does it.
    """
    for task in claimed_work(folder, batches, doing=doing, still=still, waiting=waiting):
        if task is not None:
            try:
                yield task.keys
            finally:
                task.release()


def claimed_work(
    folder: Path,
    batches: Iterable[Sequence[str]],
    *,
    doing: str,
    still: Callable[[Sequence[str]], list[str]],
    waiting: Callable[[Holder], None],
) -> Iterator[Task | None]:
    """The same for a caller who is at several batches at once and releases each when it is done.

    None says that all that is left is others' work: who goes on to ask then waits for them,
    and must have released its own tasks before.
    """
    left = [list(batch) for batch in batches]
    while left:
        passed: list[list[str]] = []
        others: Holder | None = None
        for batch in left:
            claim, elsewhere = _take(folder, batch, doing=doing, still=still)
            if claim is not None:
                yield Task([key for key in batch if key in claim.keys], claim)
            if elsewhere is not None:
                others = elsewhere
                passed.append(batch)
        left = passed
        if others is not None:
            yield None
            waiting(others)
            time.sleep(LOOK_AGAIN_SECONDS)


def _take(
    folder: Path, batch: list[str], *, doing: str, still: Callable[[Sequence[str]], list[str]]
) -> tuple[Claim | None, Holder | None]:
    """Claim what is missing of `batch` and free; and somebody who is at the rest of it."""
    missing = still(batch)
    if not missing:
        return None, None
    free, other = _free(folder, missing)
    if not free:
        return None, other  # seen without the lock, which others may need
    with writer_lock(folder, doing=doing, patience_seconds=LOCK_PATIENCE_SECONDS):
        _remove_dead(folder)
        free, other = _free(folder, still(batch))
        if not free:
            return None, other
        holder = new_holder(doing)
        path = folder / CLAIMS / f"{unique_name()}.json"
        write_json(path, {**asdict(holder), "keys": free})
    return Claim(path, holder, frozenset(free)), other


def _free(folder: Path, keys: Sequence[str]) -> tuple[list[str], Holder | None]:
    """Those of `keys` that nobody living has claimed, and one who has claimed others."""
    taken = {key: claim.holder for claim in living_claims(folder) for key in claim.keys}
    holders = [taken[key] for key in keys if key in taken]
    return [key for key in keys if key not in taken], holders[0] if holders else None


def living_claims(folder: Path) -> list[Claim]:
    """The claims of processes that are not known to be dead."""
    return [claim for claim in claims_in(folder) if not is_dead(claim.holder.owner)]


def claims_in(folder: Path) -> list[Claim]:
    """Every claim there is in the store at `folder`."""
    claims = folder / CLAIMS
    paths = sorted(claims.glob("*.json")) if claims.is_dir() else []
    return [claim for path in paths if (claim := _read(path)) is not None]


def refuse_claims(folder: Path) -> None:
    """Make sure that nobody is at work in the store at `folder`; holds the writer lock.

    Raises:
        Locked: somebody is.
    """
    for claim in living_claims(folder):
        raise Locked(
            f"{folder} is being filled by {claim.holder}.",
            "Wait for it, or end it. If you know that it runs no more: `qedit unlock`.",
        )
    _remove_dead(folder)


@contextlib.contextmanager
def alone_in(folders: Iterable[Path], *, doing: str) -> Iterator[None]:
    """Have nobody add rows or remove any, while the block runs, in the stores at `folders`.

    A stage claims in one store what it makes for several: to be alone in one of them takes
    the others as well.

    Raises:
        Locked: somebody is at work there.
    """
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders):
            stack.enter_context(writer_lock(folder, doing=doing))
            refuse_claims(folder)
        yield


def _remove_dead(folder: Path) -> None:
    make_folder(folder / CLAIMS)
    sweep(folder / CLAIMS)
    for claim in claims_in(folder):
        if is_dead(claim.holder.owner):
            remove(claim.path)


def _read(path: Path) -> Claim | None:
    try:
        said = json.loads(path.read_bytes())
        keys = frozenset(said.pop("keys"))
        return Claim(path, Holder(**{**said, "owner": Owner(**said["owner"])}), keys)
    except FileNotFoundError:
        return None  # done this very moment
    except (ValueError, TypeError, KeyError) as error:
        raise Locked(
            f"{path} says that somebody is at work there, but it cannot be read: {error}.",
            f"If no other qedit is at work there, delete {path}.",
        ) from error
