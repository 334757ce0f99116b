"""A stage's missing rows on one device: claimed, encoded, written and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from ...cache.store.store_set import StoreSet
from ..stage import Progress
from ..stores.recipes import is_earlier
from ..stores.row_kinds import RowKind
from .device_options import BatchSize, DeviceOptions
from .encoder import Encoding
from .pipeline import EncodingPipeline
from .progress_messages import SpeedLog, saying_what_is_kept
from .read_ahead import claimed_jobs
from .write_rows import RowWriter


@dataclass(frozen=True)
class Work:
    """The work of one encoder.

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
    store_sets: Mapping[RowKind, StoreSet]
    still: Callable[[Sequence[str]], list[str]]
    encoding: Encoding
    batch_size: BatchSize


@dataclass
class Totals:
    """The rows that were added, by kind, and the seconds that each part of the work took."""

    rows: Counter[RowKind] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        """Add the totals of another device or another encoder."""
        self.rows.update(other.rows)
        for part, seconds in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def encode_missing(work: Work, progress: Progress, options: DeviceOptions) -> Totals:
    """Encode the rows of `work` that no other process encodes, until none is missing.

    Float32 is exact where the recipe of the rows says so.
    """
    from ..models.device import exact_float32

    with nullcontext() if is_earlier(work.claimed_in.recipe) else exact_float32():
        return _encode(work, progress, options)


def _encode(work: Work, progress: Progress, options: DeviceOptions) -> Totals:
    writer, speed = RowWriter(work.store_sets), SpeedLog(progress)
    with progress.bar(work.count, work.stage, unit=work.unit) as advance, writer.adding():
        pipeline = EncodingPipeline(
            work.encoding,
            writer.write,
            workers=options.readers,
            batch_size=work.batch_size,
            speed=speed,
            advance=advance,
        )
        with saying_what_is_kept(progress, lambda: _kept(pipeline.added), work.rows):
            pipeline.run(
                claimed_jobs(
                    work.claimed_in,
                    work.parts,
                    items_of=work.items_of,
                    still=work.still,
                    stage=work.stage,
                    progress=progress,
                )
            )
    return Totals(pipeline.added, speed.seconds)


def _kept(added: Counter[RowKind]) -> int:
    return added.total() - added[RowKind.PICTURES]
