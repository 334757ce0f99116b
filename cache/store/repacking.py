"""Rows moved into fewer parts: to drop unused rows, and to join small parts.

New parts are written before old ones go, so that every row is there at any moment; for a
while some are there twice, which is allowed. A reader whose part has gone looks again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import Broken
from ..files.atomic import remove
from ..files.free_space import tree_bytes
from ..format.arrays import Bits
from ..format.grid import SHARD_LENGTH
from ..format.listing import Listing, Row
from ..format.part import Part, rows_in
from .contents import damaged
from .store import Store

MOST_ROWS = 64


@dataclass
class Repacking:
    """A plan of which parts of a store are removed and which rows move.

    Attributes:
        gone: names of parts of which nothing is kept.
        moved: part name -> the keys of it that are kept, in new parts.
        rows, count_bytes: what is given up.
    """

    gone: list[str] = field(default_factory=list)
    moved: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0
    count_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.gone or self.moved)


def plan_repacking(
    store: Store, wanted: pa.ChunkedArray | None = None, *, compact: bool = False
) -> Repacking:
    """Return the plan that keeps the rows of `wanted` alone (None: all rows).

    Args:
        compact: whether to join parts that are less than half full as well, where that makes
            fewer of them: rows of another shape lie in parts of their own.
    """
    listing = store.listing()
    plan = Repacking()
    if listing is None:
        return plan
    keys = listing.rows["key"]
    stay = (
        np.ones(len(keys), bool)
        if wanted is None
        else np.asarray(pc.is_in(keys, value_set=wanted), bool)
    )
    small: dict[str, list[str]] = {}
    shapes = {name: grid.shape[1:] for name, grid in zip(listing.names, listing.grids, strict=True)}
    ends = np.cumsum(listing.counts)
    for name, end, count in zip(listing.names, ends.tolist(), listing.counts.tolist(), strict=True):
        kept = stay[end - count : end]
        if not kept.any():
            plan.gone.append(name)
        elif kept.all() and not (compact and _is_small(store, listing, end - count, end)):
            continue
        else:
            here = keys.slice(end - count, count).filter(pa.array(kept)).to_pylist()
            (plan.moved if not kept.all() else small)[name] = here
        lost = count - int(kept.sum())
        plan.rows += lost
        plan.count_bytes += tree_bytes(store.parts_folder / name) * lost // count
    alike = Counter(shapes[name] for name in (*small, *plan.moved))
    plan.moved |= {name: keys for name, keys in small.items() if alike[shapes[name]] > 1}
    return plan


def carry_out(store: Store, plan: Repacking) -> None:
    """Carry out a plan; called inside `store.writing()`, because rows disappear.

    Raises:
        Damaged: a row that is to be moved. Nothing of its part has gone.
    """
    for name in plan.gone:
        remove(store.parts_folder / name)
    if plan.moved:
        _move(store, plan)
    store.refresh()


def _move(store: Store, plan: Repacking) -> None:
    """Add the kept rows to new parts, and remove each old part once all its rows have moved."""
    left = {name: len(keys) for name, keys in plan.moved.items()}
    sources = _Sources(store)
    for group in _groups(store, plan.moved):
        once = {key: name for name, key in reversed(group)}
        store.add(list(once), [sources.read(name, key) for key, name in once.items()])
        for name, _ in group:
            left[name] -= 1
            if not left[name]:
                sources.close(name)
                remove(store.parts_folder / name)


class _Sources:
    """Rows read from one given part: another part may hold them too, but damaged."""

    def __init__(self, store: Store) -> None:
        listing = store.listing()
        assert listing is not None, "nothing is moved where there is nothing"
        self._store, self._table = store, listing.rows
        ends = np.cumsum(listing.counts).tolist()
        begins = [0, *ends[:-1]]
        places = zip(listing.grids, begins, ends, strict=True)
        self._places = dict(zip(listing.names, places, strict=True))
        self._open: dict[str, tuple[Part, dict[str, Row]]] = {}

    def read(self, name: str, key: str) -> Bits:
        """Return the row of `key` in the part called `name`; raise Damaged."""
        if name not in self._open:
            grid, begin, end = self._places[name]
            rows = self._table.slice(begin, end - begin)
            own = Listing([name], [grid], np.array([end - begin]), rows)
            part = Part(self._store.parts_folder / name, self._store.layout, grid)
            self._open[name] = part, dict(rows_in(own))
        part, there = self._open[name]
        try:
            return part.read(there[key])
        except Broken as error:
            raise damaged(part.path, f"Row {key}", error) from error

    def close(self, name: str) -> None:
        """Forget a part, all of whose kept rows have been read."""
        self._open.pop(name, None)


def _is_small(store: Store, listing: Listing, begin: int, end: int) -> bool:
    if not store.layout.ragged:
        return end - begin < MOST_ROWS // 2
    tokens = pc.sum(listing.rows["length"].slice(begin, end - begin)).as_py()
    return bool(tokens < SHARD_LENGTH // 2)


def _groups(store: Store, moved: dict[str, list[str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Yield groups of (part, key) of rows that are written together, each one full part."""
    by_shape: dict[tuple[int, ...], list[tuple[str, str]]] = defaultdict(list)
    filled: dict[tuple[int, ...], int] = defaultdict(int)
    most = SHARD_LENGTH if store.layout.ragged else MOST_ROWS
    for name, keys in moved.items():
        for key in keys:
            shape = store.shape(key)
            shape, length = (shape[1:], shape[0]) if store.layout.ragged else (shape, 1)
            if filled[shape] + length > most:
                yield by_shape.pop(shape)
                filled[shape] = 0
            by_shape[shape].append((name, key))
            filled[shape] += length
    yield from by_shape.values()
