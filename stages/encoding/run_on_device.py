"""A stage's missing rows, on one device: claimed, encoded, written, and told about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...cache.store.store_set import StoreSet
from ..stage import Progress
from .batch_size import BatchSize
from .device_options import Ways
from .encoder import Encoding
from .pipeline import Filling
from .sharing_messages import saying_what_is_kept
from .speed_log import Pace
from .write_rows import Keeping, claimed_jobs

REJECTED = "rejected"
FOR_THE_NEXT = "shown"  # rows that the next stage takes, and that go when the command ends


@dataclass(frozen=True)
class Work:
    """What is to be made.

    Attributes:
        stage, unit, rows: the command, what it encodes, and what becomes of that, for people.
        count: of items, all together.
        parts: by dataset, the keys that are claimed and written together.
        items_of: what makes the rows of some keys of a part, in their order.
        claimed_in: the set of stores that claims are made in.
        store_sets: where rows go, by kind.
        still: which keys are missing, as it is now.
    """

    stage: str
    unit: str
    rows: str
    count: int
    parts: Mapping[str, Sequence[Sequence[str]]]
    items_of: Callable[[Sequence[str]], Sequence[object]]
    claimed_in: StoreSet
    store_sets: Mapping[str, StoreSet]
    still: Callable[[Sequence[str]], list[str]]
    encoding: Encoding
    batch_size: BatchSize


@dataclass
class Filled:
    """What one process, or several together, did: rows by kind, and where the time went."""

    rows: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: Filled) -> None:
        """Take in what another one did."""
        self.rows.update(other.rows)
        for part, seconds in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def fill(work: Work, progress: Progress, ways: Ways) -> Filled:
    """Make the rows of `work` that nobody else makes, until none is missing."""
    keeping, pace = Keeping(work.store_sets), Pace(progress)
    with progress.bar(work.count, work.stage, unit=work.unit) as advance, keeping.adding():
        filling = Filling(
            work.encoding,
            keeping.keep,
            workers=ways.readers,
            batch_size=work.batch_size,
            pace=pace,
            advance=advance,
        )
        with saying_what_is_kept(progress, lambda: _made(filling.added), work.rows):
            filling.run(
                claimed_jobs(
                    work.claimed_in,
                    work.parts,
                    items_of=work.items_of,
                    still=work.still,
                    stage=work.stage,
                    progress=progress,
                )
            )
    return Filled(filling.added, pace.seconds)


def _made(added: Counter[str]) -> int:
    return added.total() - added[REJECTED] - added[FOR_THE_NEXT]
