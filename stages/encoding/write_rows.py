"""Where rows go: into the stores of their dataset, and what became of none beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ...cache.files.claims import claimed_work
from ...cache.store.rejected_rows import RejectedRow, RejectedRows
from ...cache.store.store import Store
from ...cache.store.store_set import StoreSet
from ..stage import Progress
from ..stores.run_stores import add_missing
from .encoder import Made
from .read_ahead import Job
from .sharing_messages import Waiting


class Keeping:
    """Adds what was made to sets of stores of several kinds; they are nobody else's objects.

    The thread that writes has stores of its own: those that work is claimed by are looked at
    at the same time.
    """

    def __init__(self, store_sets: Mapping[str, StoreSet]) -> None:
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

    def keep(self, dataset: str, made: Sequence[Made]) -> Counter[str]:
        """Add all rows of `made`, as few parts; how many of each kind were added.

        Rejections are remembered first: a row that was rejected is never thought missing.
        """
        added: Counter[str] = Counter()
        for kind, store_set in self._store_sets.items():
            for row in _rejected(made, kind):
                path = store_set.of(row.dataset).path
                self._rejected.setdefault(path, RejectedRows(path)).add(row)
                added["rejected"] += 1
            for store, rows in _parts(made, kind, store_set=store_set, dataset=dataset):
                added[kind] += add_missing(store, rows)
        return added


def _rejected(made: Sequence[Made], kind: str) -> list[RejectedRow]:
    return [row for one in made for row in one.rejected.get(kind, [])]


def _parts(
    made: Sequence[Made], kind: str, *, store_set: StoreSet, dataset: str
) -> Iterator[tuple[Store, dict[str, np.ndarray]]]:
    """Rows of one kind that can lie in one part: of one store, and of one shape if need be."""
    parts: dict[tuple[Store, tuple[int, ...]], dict[str, np.ndarray]] = {}
    for one in made:
        for key, row in one.rows.get(kind, {}).items():
            store = store_set.of(one.datasets.get(key, dataset))
            shape = () if store.layout.ragged else row.shape
            parts.setdefault((store, shape), {})[key] = row
    for (store, _), rows in parts.items():
        yield store, rows


def claimed_jobs(
    store_set: StoreSet,
    parts: Mapping[str, Sequence[Sequence[str]]],
    *,
    items_of: Callable[[Sequence[str]], Sequence[object]],
    still: Callable[[Sequence[str]], list[str]],
    stage: str,
    progress: Progress,
) -> Iterator[Job | None]:
    """The items of part after part, claimed in `store_set`, none of them another process's.

    For the arguments see `Work`.
    """
    for dataset, keys in parts.items():
        for task in claimed_work(
            store_set.of(dataset).path,
            keys,
            doing=f"qedit {stage}",
            still=still,
            waiting=Waiting(progress),
        ):
            yield None if task is None else Job(task, dataset, items_of(task.keys))
