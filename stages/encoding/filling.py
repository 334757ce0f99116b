"""One story for both encoders: read ahead, encode in batches, write behind.

One thread drives the encoder. Others read the items that come next, and one writes what was
made. What is in memory is bounded by the batch size, the number of readers and the size of a
part, never by the data set. The encoder is opened for the first item that was really claimed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...cache.claims import Task
from ...cache.errors import QeditError
from ..rejected_rows import RejectedRow
from .batch_size import BatchSize
from .pace import Pace
from .write_behind import WriteBehind

PART_BYTES = 112 << 20  # 16384 tokens of embeds at full scale


@dataclass(frozen=True)
class Made:
    """What came of one item: rows by kind and key, and by kind those that there cannot be."""

    rows: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    rejected: dict[str, list[RejectedRow]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for rows in self.rows.values() for row in rows.values())


@dataclass
class Job:
    """Items of one dataset that this process has claimed, in the order they are encoded in."""

    task: Task
    dataset: str
    items: Sequence[Any]


class Unfit(Exception):
    """An item that no row can be made of: `reason` is a short code, `detail` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@runtime_checkable
class Encoder(Protocol):
    """A model on its device."""

    @property
    def device(self) -> Any: ...  # a torch.device: without work to do, torch is not imported

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[Made]:
        """What comes of each of `items`, given what was read of them."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """What a stage knows of its items and the engine does not."""

    def read(self, item: Any) -> Any:
        """Whatever needs no model, in some thread; raises Unfit for an item without rows."""
        ...

    def cost(self, item: Any) -> int:
        """How large it is for the encoder."""
        ...

    def together(self, one: Any, other: Any) -> bool:
        """Whether `other` may be in a batch that begins with `one`."""
        ...

    def rejected(self, item: Any, unfit: Unfit) -> Made:
        """What is remembered of an item that could not be read."""
        ...

    def name(self, item: Any) -> str:
        """Of its picture or sample, for messages."""
        ...

    def open(self) -> Encoder:
        """Load the encoder."""
        ...


@dataclass
class _Reading:
    job: Job
    item: Any
    last: bool  # of its job
    future: Future[Any]


class _Ahead:
    """The items of all jobs, in order, being read a few before they are encoded."""

    def __init__(self, jobs: Iterator[Job | None], encoding: Encoding, *, workers: int) -> None:
        self.waiting: deque[_Reading] = deque()
        self.open: list[Job] = []  # claimed and not released yet
        self.ended = False
        self.paused = False  # all that is left is others' work
        self._items = self._flat(jobs)
        self._encoding = encoding
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._items.close()
        for job in self.open:
            job.task.release()

    def top_up(self, count: int) -> None:
        """Have `count` items waiting, if there are so many that are free to be claimed."""
        while len(self.waiting) < count and not (self.ended or self.paused):
            try:
                found = next(self._items)
            except StopIteration:
                self.ended = True
                return
            if found is None:
                self.paused = True
            else:
                job, item, last = found
                future = self._pool.submit(self._encoding.read, item)
                self.waiting.append(_Reading(job, item, last, future))

    def take(self, most: int) -> list[_Reading]:
        """The next items that may be encoded together: of one job, at most so many."""
        batch = [self.waiting.popleft()]
        while self.waiting and len(batch) < most:
            following = self.waiting[0]
            if following.job is not batch[0].job:
                break
            if not self._encoding.together(batch[0].item, following.item):
                break
            batch.append(self.waiting.popleft())
        return batch

    def _flat(
        self, jobs: Iterator[Job | None]
    ) -> Generator[tuple[Job, Any, bool] | None, None, None]:
        for job in jobs:
            if job is None:
                yield None
                continue
            self.open.append(job)
            for number, item in enumerate(job.items):
                yield job, item, number == len(job.items) - 1


class Filling:
    """Jobs become rows.

    Args:
        keep: adds what was made of items of a dataset to its stores; called in one thread, in
            order. Gives the numbers of rows it added, by kind.
        workers: threads that read.
        advance: told how many items are done.
    """

    def __init__(
        self,
        encoding: Encoding,
        keep: Callable[[str, Sequence[Made]], Counter[str]],
        *,
        workers: int,
        batch_size: BatchSize,
        pace: Pace,
        advance: Callable[[int], None],
    ) -> None:
        self.added: Counter[str] = Counter()
        self._encoding, self._keep = encoding, keep
        self._workers, self._batch_size = workers, batch_size
        self._pace, self._advance = pace, advance
        self._encoder: Encoder | None = None
        self._made: list[Made] = []

    def run(self, jobs: Iterator[Job | None]) -> None:
        """Do all jobs; each is released once its rows are written."""
        try:
            with (
                _Ahead(jobs, self._encoding, workers=self._workers) as ahead,
                WriteBehind(self._pace) as writer,
            ):
                self._run(ahead, writer)
        finally:
            self._encoder = None
            from ..models.device import release_memory

            release_memory()

    def _run(self, ahead: _Ahead, writer: WriteBehind) -> None:
        while True:
            ahead.top_up(2 * self._workers)
            if not ahead.waiting:
                writer.finish()  # our own work is released before others' is waited for
                if ahead.ended:
                    return
                ahead.paused = False
                continue
            cost = self._encoding.cost(ahead.waiting[0].item)
            self._measure_first(ahead.waiting[0], cost=cost)
            most = self._batch_size.of(cost)
            ahead.top_up(most + self._workers)
            batch = ahead.take(most)
            self._made += self._made_of(batch)
            self._advance(len(batch))
            self._hand_over(ahead, writer, batch[-1])

    def _hand_over(self, ahead: _Ahead, writer: WriteBehind, latest: _Reading) -> None:
        """Have the writer add what was made, once it is as much as a part or the job is done."""
        if not latest.last and sum(made.nbytes for made in self._made) < PART_BYTES:
            return
        made, self._made = self._made, []
        writer.put(partial(self._write, latest.job, made))
        if latest.last:
            writer.put(partial(self._release, ahead, latest.job))

    def _write(self, job: Job, made: Sequence[Made]) -> None:
        self.added.update(self._keep(job.dataset, made))

    def _release(self, ahead: _Ahead, job: Job) -> None:
        job.task.release()
        ahead.open.remove(job)

    def _made_of(self, batch: Sequence[_Reading]) -> list[Made]:
        """What comes of a batch, the items that could not be read included, in its order."""
        results: dict[int, Made] = {}
        fit: list[tuple[int, Any, Any]] = []
        for place, reading in enumerate(batch):
            try:
                with self._pace.spent("decode"):
                    fit.append((place, reading.item, reading.future.result()))
            except Unfit as unfit:
                results[place] = self._encoding.rejected(reading.item, unfit)
        if fit:
            places, items, read = zip(*fit, strict=True)
            with self._pace.spent("encode"):
                results |= zip(places, self._encoded(items, read), strict=True)
        return [results[place] for place in range(len(batch))]

    def _encoded(self, items: Sequence[Any], read: Sequence[Any]) -> list[Made]:
        """Encode these together, or in halves where memory does not suffice.

        An item that fails among others is tried again alone before it is given up.
        """
        made = self._tried(items, read)
        if made is None:
            from ..models.device import release_memory

            release_memory()
            if len(items) == 1:
                raise QeditError(
                    f"{self._encoding.name(items[0])} alone does not fit into the memory of "
                    f"{self._opened().device}.",
                    "Use a larger device, or `--device cpu`.",
                )
            self._batch_size.was_too_much(len(items), cost=self._encoding.cost(items[0]))
            half = len(items) // 2
            return [
                *self._encoded(items[:half], read[:half]),
                *self._encoded(items[half:], read[half:]),
            ]
        for place, one in enumerate(made):
            if any(one.rejected.values()) and len(items) > 1:
                made[place : place + 1] = self._encoded([items[place]], [read[place]])
        return made

    def _tried(self, items: Sequence[Any], read: Sequence[Any]) -> list[Made] | None:
        """None where it does not fit. Nothing may refer to the error while memory is released."""
        encoder = self._opened()
        try:
            return encoder.encode(items, read)
        except Exception as error:
            from ..models.device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return None

    def _measure_first(self, first: _Reading, *, cost: int) -> None:
        def once() -> None:
            self._opened().encode([first.item], [first.future.result()])

        # what cannot be read is rejected in its turn; batches are then as without a measurement
        with suppress(Unfit):
            self._batch_size.measure(once, cost=cost, device=self._opened().device)

    def _opened(self) -> Encoder:
        if self._encoder is None:
            with self._pace.spent("encode"):
                self._encoder = self._encoding.open()
        return self._encoder
