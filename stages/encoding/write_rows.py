"""Rows go into the stores of their dataset, and rejections beside them, in a thread of its own."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from ...cache.store.rejected_rows import RejectedRows
from ...cache.store.store import Store
from ...cache.store.store_set import StoreSet
from ..stores.row_kinds import RowKind
from ..stores.run_stores import add_missing
from .encoder import EncodedItem
from .progress_messages import SpeedLog

MOST_WAITING = 2  # one is being written, one waits


class RowWriter:
    """Adds encoded rows to sets of stores of several kinds.

    It opens the stores once more, for the thread that writes: another one looks at the stores
    that work is claimed in at the same time.
    """

    def __init__(self, store_sets: Mapping[RowKind, StoreSet]) -> None:
        self._store_sets = {kind: store_set.reopened() for kind, store_set in store_sets.items()}
        self._rejected: dict[Path, RejectedRows] = {}

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Let rows be added while the block runs."""
        with ExitStack() as stack:
            for store_set in self._store_sets.values():
                for store in store_set.stores():
                    stack.enter_context(store.adding())
            yield

    def write(self, dataset: str, encoded: Sequence[EncodedItem]) -> Counter[RowKind]:
        """Add all rows of `encoded` as few parts; return how many of each kind were added.

        Rejections are remembered first: a row that was rejected is never thought missing.
        """
        added = Counter[RowKind]()
        for kind, store_set in self._store_sets.items():
            for row in (row for item in encoded for row in item.rejected.get(kind, [])):
                path = store_set.of(row.dataset).path
                self._rejected.setdefault(path, RejectedRows(path)).add(row)
            for store, rows in _parts(encoded, kind, store_set=store_set, dataset=dataset):
                added[kind] += add_missing(store, rows)
        return added


def _parts(
    encoded: Sequence[EncodedItem], kind: RowKind, *, store_set: StoreSet, dataset: str
) -> Iterator[tuple[Store, dict[str, np.ndarray]]]:
    """Yield the rows of one kind by part: of one store, and of one shape if need be."""
    parts: dict[tuple[Store, tuple[int, ...]], dict[str, np.ndarray]] = {}
    for item in encoded:
        for key, row in item.rows.get(kind, {}).items():
            store = store_set.of(item.datasets.get(key, dataset))
            shape = () if store.layout.ragged else row.shape
            parts.setdefault((store, shape), {})[key] = row
    for (store, _), rows in parts.items():
        yield store, rows


class WriteBehind:
    """Runs jobs one after the other in a thread; leaving the block waits for all of them."""

    def __init__(self, speed: SpeedLog) -> None:
        self._speed = speed
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
        """Hand over a job; waits while two are at hand. Raises what an earlier job raised."""
        while len(self._waiting) >= MOST_WAITING:
            self._take()
        self._waiting.append(self._pool.submit(job))

    def finish(self) -> None:
        """Wait until everything is done."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        with self._speed.spent("write"):
            self._waiting.popleft().result()
