"""Listings: the rows there are and where each lies, as columns, because there may be millions.

A store's listing is put together from the tables of its parts, or from an index that holds
many of them (`index.py`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import Broken
from .finding import Numbers
from .grid import Grid

MOST_ROW_BYTES = 1 << 30  # a text of 16384 tokens has an eighth of it
ROWS_SCHEMA = pa.schema(
    {"key": pa.string(), "start": pa.int64(), "length": pa.int32(), "crc32c": pa.uint32()}
)


class Row(NamedTuple):
    """The place of a row along the first axis of its part's array, and its checksum."""

    start: int
    length: int
    checksum: int


@dataclass(frozen=True)
class Listing:
    """The rows of some parts, part after part.

    Attributes:
        names, grids: of the parts.
        counts: how many rows each part has.
        rows: a table of `key`, `start`, `length`, `crc32c`, as in rows.parquet.
    """

    names: Sequence[str]
    grids: Sequence[Grid]
    counts: npt.NDArray[np.int64]
    rows: pa.Table

    def only(self, names: Set[str]) -> Listing:
        """Return the listing of those parts alone that are called `names`."""
        stay = np.array([name in names for name in self.names], bool)
        if stay.all():
            return self
        rows = self.rows.filter(pa.array(np.repeat(stay, self.counts)))
        kept = np.flatnonzero(stay).tolist()
        return Listing(
            [self.names[at] for at in kept],
            [self.grids[at] for at in kept],
            self.counts[stay],
            rows,
        )


def checked_listing(
    names: Sequence[str], grids: Sequence[Grid], counts: Sequence[int], rows: pa.Table
) -> Listing:
    """Return these as a listing; raise Broken where they do not fit together."""
    fits = (
        rows.schema.equals(ROWS_SCHEMA)
        and not any(column.null_count for column in rows.columns)
        and all(type(count) is int and count >= 0 for count in counts)
        and sum(counts) == len(rows)
        and all(grid.shards <= count for grid, count in zip(grids, counts, strict=True))
        and _longest_bytes(grids, rows["length"]) <= MOST_ROW_BYTES
    )
    each = np.array(counts if fits else [], np.int64)
    if not fits or not _lie_inside(rows, np.repeat([grid.shape[0] for grid in grids], each)):
        raise Broken("its table of rows does not fit its arrays")
    return Listing(names, grids, each, rows)


def _longest_bytes(grids: Sequence[Grid], lengths: pa.ChunkedArray) -> int:
    """Return a bound of the bytes of the longest row, for which memory is taken at once."""
    widest = max((2 * math.prod(grid.shape[1:]) for grid in grids), default=0)
    return widest * (pc.max(lengths).as_py() or 0)


def _lie_inside(rows: pa.Table, ends: npt.NDArray[np.int64]) -> bool:
    """Return whether each row lies in its part's array, which ends at `ends`."""
    starts = rows["start"].to_numpy()
    return bool(((starts >= 0) & (starts < ends) & (rows["length"].to_numpy() > 0)).all())


def joined(listings: Sequence[Listing]) -> Listing:
    """Return all these listings, one after the other, as one."""
    return Listing(
        [name for listing in listings for name in listing.names],
        [grid for listing in listings for grid in listing.grids],
        np.concatenate([listing.counts for listing in listings]),
        pa.concat_tables([listing.rows for listing in listings]).combine_chunks(),
    )


class _Block:
    """One listing with its rows numbered from `first` on."""

    def __init__(self, listing: Listing, first: int) -> None:
        self.listing, self.first, self.names = listing, first, listing.names
        self.part_ends: list[int] = np.cumsum(listing.counts).tolist()
        table = listing.rows
        # one number of a memoryview is had several times faster than one of an array
        self.starts = table["start"].to_numpy().data
        self.lengths = table["length"].to_numpy().data
        self.checksums = table["crc32c"].to_numpy().data

    def place(self, number: int) -> tuple[int, Row]:
        """Return the index of the part that holds row `number`, and the row's place in it."""
        at = number - self.first
        part = bisect.bisect_right(self.part_ends, at)
        return part, Row(self.starts[at], self.lengths[at], self.checksums[at])


class Rows:
    """The rows of a store: a growing list of listings, found again by key."""

    def __init__(self) -> None:
        self.parts: dict[str, Grid] = {}
        self._blocks: list[_Block] = []
        self._firsts: list[int] = []
        self._count = 0
        self._numbers = Numbers()

    def admit(self, listing: Listing) -> None:
        """Add the rows of `listing`."""
        self._blocks.append(_Block(listing, self._count))
        self._firsts.append(self._count)
        self._count += len(listing.rows)
        self.parts.update(zip(listing.names, listing.grids, strict=True))
        self._numbers.add(listing.rows["key"])

    def __contains__(self, key: str) -> bool:
        return self._numbers.get(key) is not None

    def keys(self) -> pa.ChunkedArray:
        """Return the key of every row; a key that lies in several parts comes several times."""
        there = [block.listing.rows["key"] for block in self._blocks]
        return pa.chunked_array([chunk for column in there for chunk in column.chunks], pa.string())

    def find(self, key: str) -> tuple[str, Row] | None:
        """Return the name of the part that holds `key`, and the place in it; None if none does."""
        number = self._numbers.get(key)
        if number is None:
            return None
        block = self._blocks[bisect.bisect_right(self._firsts, number) - 1]
        part, row = block.place(number)
        return block.names[part], row

    def contains_many(self, keys: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Return a mask, one bool for each key: whether it has a row. For millions of keys."""
        return np.asarray(pc.is_in(keys, value_set=self.keys()), bool)

    def listing(self, names: Iterable[str] | None = None) -> Listing | None:
        """Return all rows (or those of the parts called `names`) as one listing."""
        listings = [block.listing for block in self._blocks]
        if names is not None:
            wanted = set(names)
            listings = [part for listing in listings if len((part := listing.only(wanted)).names)]
        return joined(listings) if listings else None
