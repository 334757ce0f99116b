"""Items are claimed and read in threads while those before them are encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ...cache.files.claims import Task, claimed_work
from ...cache.store.store_set import StoreSet
from ..stage import Progress
from .encoder import Encoding
from .progress_messages import WaitingNotice


@dataclass
class Job:
    """Items of one dataset that this process has claimed, in the order of encoding."""

    task: Task
    dataset: str
    items: Sequence[Any]


@dataclass
class QueuedItem:
    """An item that is being read, or has been."""

    job: Job
    item: Any
    last: bool  # of its job
    future: Future[Any]


class ReadAhead:
    """Reads the items of all jobs in order, as many as are asked for.

    Attributes:
        waiting: being read or read, and not taken yet.
        open: jobs that are claimed and not released yet.
        ended: nothing is left to claim.
        paused: all that is left is others' work.
    """

    def __init__(self, jobs: Iterator[Job | None], encoding: Encoding, *, workers: int) -> None:
        self.waiting: deque[QueuedItem] = deque()
        self.open: list[Job] = []
        self.ended = False
        self.paused = False
        self._items = self._flat(jobs)
        self._encoding = encoding
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")

    def __enter__(self) -> ReadAhead:
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
        """Start reading until `count` items wait, or none is left that is free to be claimed."""
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
                self.waiting.append(QueuedItem(job, item, last, future))

    def take(self, most: int) -> list[QueuedItem]:
        """Return the next items that may be encoded together: of one job, at most `most`."""
        batch = [self.waiting.popleft()]
        while self.waiting and len(batch) < most:
            following = self.waiting[0]
            if following.job is not batch[0].job:
                break
            if not self._encoding.together(batch[0].item, following.item):
                break
            batch.append(self.waiting.popleft())
        return batch

    def release(self, job: Job) -> None:
        """Release the claim of `job`: others may take what is still missing of it."""
        job.task.release()
        self.open.remove(job)

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


def claimed_jobs(
    store_set: StoreSet,
    parts: Mapping[str, Sequence[Sequence[str]]],
    *,
    items_of: Callable[[Sequence[str]], Sequence[object]],
    still: Callable[[Sequence[str]], list[str]],
    stage: str,
    progress: Progress,
) -> Iterator[Job | None]:
    """Yield the items of part after part, claimed in `store_set`; None while others have all.

    For the arguments see `Work`.
    """
    for dataset, keys in parts.items():
        for task in claimed_work(
            store_set.of(dataset).path,
            keys,
            doing=f"qedit {stage}",
            still=still,
            waiting=WaitingNotice(progress),
        ):
            yield None if task is None else Job(task, dataset, items_of(task.keys))
