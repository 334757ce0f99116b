"""Claims: which process computes which keys, so that several fill one store without doubled work.

To add rows takes no lock, because every part has a name of its own. What is to be computed
is claimed first: a small file under `claims/` names the process and the keys. Claims are
made one at a time, under the writer lock, and those of dead processes are removed. Who
removes rows holds the writer lock and waits for no claim: there must be none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .atomic import make_folder, remove, sweep, unique_name, write_json
from .lock import Holder, at_work, holder_from, new_holder, read_held, writer_lock
from .owner import is_dead

CLAIMS = "claims"
LOCK_PATIENCE_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class Claim:
    """The keys that one process is computing, read from the file at `path`."""

    path: Path
    holder: Holder
    keys: frozenset[str]


@dataclass(frozen=True)
class Task:
    """Keys to compute, in order; no other process computes them until `release`."""

    keys: list[str]
    claim: Claim

    def release(self) -> None:
        """Remove the claim, so that others may compute what is still missing."""
        remove(self.claim.path)


def claimed_work(
    folder: Path,
    batches: Iterable[Sequence[str]],
    *,
    doing: str,
    still: Callable[[Sequence[str]], list[str]],
    waiting: Callable[[Holder], None],
) -> Iterator[Task | None]:
    """Yield tasks of batch after batch, until none of their keys is missing.

    No other process is given the keys of a task until it is released. Batches that others are
    computing are looked at again at the end: what a dead process did not finish is handed out anew.

    Args:
        folder: of the store.
        doing: what the process does, for the messages of others.
        still: returns those of some keys that are missing now.
        waiting: called with the holder, whenever all that is left is others' work.

    Yields:
        A task; or None when all that is left is others' work. A caller that asks for more then
        waits for them, and must have released its own tasks before.
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
    """Claim the missing, unclaimed keys of `batch`; return the claim and a holder of other keys."""
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
    """Return the unclaimed keys among `keys`, and the holder of a claimed one."""
    taken = {key: claim.holder for claim in living_claims(folder) for key in claim.keys}
    holders = [taken[key] for key in keys if key in taken]
    return [key for key in keys if key not in taken], holders[0] if holders else None


def living_claims(folder: Path) -> list[Claim]:
    """Return the claims of processes that are not known to be dead."""
    return [claim for claim in claims_in(folder) if not is_dead(claim.holder.owner)]


def claims_in(folder: Path) -> list[Claim]:
    """Return every claim there is in the store at `folder`."""
    claims = folder / CLAIMS
    paths = sorted(claims.glob("*.json")) if claims.is_dir() else []
    return [claim for path in paths if (claim := _read(path)) is not None]


def refuse_claims(folder: Path) -> None:
    """Make sure that no process is filling the store at `folder`; the caller has the writer lock.

    Raises:
        Locked: somebody is.
    """
    for claim in living_claims(folder):
        raise at_work(folder, f"filled by {claim.holder}")
    _remove_dead(folder)


@contextlib.contextmanager
def alone_in(folders: Iterable[Path], *, doing: str) -> Iterator[None]:
    """Keep others from adding or removing rows in the stores at `folders` while the block runs.

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
    return read_held(
        path,
        lambda fields: Claim(path, keys=frozenset(fields.pop("keys")), holder=holder_from(fields)),
    )
