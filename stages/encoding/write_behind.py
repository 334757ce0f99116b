"""Rows are written in a thread of their own while the next ones are encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from .speed_log import Pace

MOST_WAITING = 2  # one is being written, one waits


class WriteBehind:
    """Does jobs one after the other, in order. What was handed over is done when it is left."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> WriteBehind:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.finish()

    def put(self, job: Callable[[], None]) -> None:
        """Have `job` done; waits while two are at hand. Raises what an earlier one raised."""
        while len(self._waiting) >= MOST_WAITING:
            self._take()
        self._waiting.append(self._pool.submit(job))

    def finish(self) -> None:
        """Wait until everything is done."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        with self._pace.spent("write"):
            self._waiting.popleft().result()
