"""Read ahead, encode in batches, write behind: the pipeline of every encoder.

One thread drives the encoder. Others read the items of the batch after the one it is at, and
one writes what was encoded. What is in memory is bounded by the batch size, the number of readers
and the size of a job (`work_split.py`), never by the data set. The encoder is opened for the first
item that was really claimed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from ...cache.errors import NotComplete, QeditError
from ..stores.row_kinds import RowKind
from .device_options import BatchSize
from .encoder import EncodedItem, Encoder, Encoding, Unfit
from .progress_messages import SpeedLog
from .read_ahead import Job, QueuedItem, ReadAhead
from .write_rows import WriteBehind

NAMED = 3  # of what did not fit


class EncodingPipeline:
    """Reads, encodes and writes the items of jobs.

    Args:
        write: adds the rows of items of a dataset to its stores; called in one thread, in order.
            Returns how many rows it added, by kind.
        workers: threads that read.
        advance: called with the number of items that are done.
    """

    def __init__(
        self,
        encoding: Encoding,
        write: Callable[[str, Sequence[EncodedItem]], Counter[RowKind]],
        *,
        workers: int,
        batch_size: BatchSize,
        speed: SpeedLog,
        advance: Callable[[int], None],
    ) -> None:
        self.added: Counter[RowKind] = Counter()
        self._encoding, self._write_rows = encoding, write
        self._workers, self._batch_size = workers, batch_size
        self._speed, self._advance = speed, advance
        self._encoder: Encoder | None = None
        self._encoded_items: list[EncodedItem] = []
        self._has_encoded = False
        self._too_large: list[str] = []

    def run(self, jobs: Iterator[Job | None]) -> None:
        """Do all jobs; each is released once its rows are written.

        Raises:
            NotComplete: items do not fit into the device's memory even alone. All others are
                done then, unless it was the first of all.
        """
        try:
            with (
                ReadAhead(jobs, self._encoding, workers=self._workers) as ahead,
                WriteBehind(self._speed) as writer,
            ):
                self._run(ahead, writer)
        finally:
            device = self._encoder and self._encoder.device
            self._encoder = None
            from ..models.device import release_memory

            release_memory()
        if self._too_large:
            _refuse_too_large(self._too_large, device=device)

    def _run(self, ahead: ReadAhead, writer: WriteBehind) -> None:
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
            ahead.top_up(most)
            batch = ahead.take(most)
            ahead.top_up(most + self._workers)  # is read while this batch is encoded
            self._encoded_items += self._encoded_batch(batch)
            self._advance(len(batch))
            self._hand_over(ahead, writer, batch[-1])

    def _hand_over(self, ahead: ReadAhead, writer: WriteBehind, latest: QueuedItem) -> None:
        """Have the writer add what was encoded, once the job is done.

        All of a job is written at once: were it written bit by bit, what a crash leaves of it
        would be cut into other batches by the rerun.
        """
        if not latest.last:
            return
        encoded, self._encoded_items = self._encoded_items, []
        writer.put(partial(self._write, latest.job, encoded))
        writer.put(partial(ahead.release, latest.job))

    def _write(self, job: Job, encoded: Sequence[EncodedItem]) -> None:
        self.added.update(self._write_rows(job.dataset, encoded))

    def _encoded_batch(self, batch: Sequence[QueuedItem]) -> list[EncodedItem]:
        """Return the rows of a batch in its order; items that could not be read are rejected."""
        results: dict[int, EncodedItem] = {}
        fit: list[tuple[int, Any, Any]] = []
        for place, queued in enumerate(batch):
            try:
                with self._speed.spent("decode"):
                    fit.append((place, queued.item, queued.future.result()))
            except Unfit as unfit:
                results[place] = self._encoding.rejected(queued.item, unfit)
        if fit:
            places, items, read = zip(*fit, strict=True)
            with self._speed.spent("encode"):
                results |= zip(places, self._encoded(items, read), strict=True)
        return [results[place] for place in range(len(batch))]

    def _encoded(self, items: Sequence[Any], read: Sequence[Any]) -> list[EncodedItem]:
        """Encode these together, or in halves where memory does not suffice.

        An item that fails among others is tried again alone before it is given up.
        """
        encoded = self._encode(items, read)
        if encoded is None:
            from ..models.device import release_memory

            release_memory()
            if len(items) == 1:
                return [self._left_out(items[0])]
            self._batch_size.was_too_much(len(items), cost=self._encoding.cost(items[0]))
            half = len(items) // 2
            return [
                *self._encoded(items[:half], read[:half]),
                *self._encoded(items[half:], read[half:]),
            ]
        self._has_encoded = True
        for place, result in enumerate(encoded):
            if any(result.rejected.values()) and len(items) > 1:
                encoded[place : place + 1] = self._encoded([items[place]], [read[place]])
        return encoded

    def _encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[EncodedItem] | None:
        """Return None where memory does not suffice: nothing may refer to the error afterwards."""
        encoder = self._opened()
        try:
            return encoder.encode(items, read)
        except Exception as error:
            from ..models.device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return None

    def _left_out(self, item: Any) -> EncodedItem:
        """Go on without an item that does not fit, if any has fitted so far; it stays missing."""
        name = self._encoding.name(item)
        if not self._has_encoded:
            _refuse_too_large([name], device=self._opened().device)
        self._too_large.append(name)
        return EncodedItem()

    def _measure_first(self, first: QueuedItem, *, cost: int) -> None:
        def once() -> None:
            self._opened().encode([first.item], [first.future.result()])

        # what cannot be read is rejected in its turn; batches are then as without a measurement
        with suppress(Unfit):
            self._batch_size.measure(once, cost=cost, device=self._opened().device)

    def _opened(self) -> Encoder:
        if self._encoder is None:
            self._encoder = _fitting(self._encoding.open)
        return self._encoder


def _fitting(load: Callable[[], Encoder]) -> Encoder:
    """Return what `load` returns; raises QeditError where memory does not hold the encoder."""
    try:
        return load()
    except Exception as error:
        from ..models.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise QeditError(
            f"The encoder itself does not fit into memory: {str(error).splitlines()[0]}",
            "End what else uses the device, or use `--device cpu`. The text encoder takes about "
            "half with `--set text_encoder_precision=int8-quanto`.",
        ) from error


def _refuse_too_large(names: Sequence[str], *, device: Any) -> NoReturn:
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    count = "This does" if len(names) == 1 else f"These {len(names)} do"
    raise NotComplete(
        f"{count} not fit into the memory of {device}, even alone: {shown}.",
        "Type the same command with `--device cpu`, or with a larger device: what was finished "
        "is kept.",
    )
