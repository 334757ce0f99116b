"""Row numbers by key, for millions of keys without an object for each.

A large column of keys is sorted once, as numbers made of the ends of the keys, and searched by
halving. Keys are digests: hardly two of them have one end. Who adds a few rows now and then has
them looked up in a dict.
"""

from __future__ import annotations

import bisect
import threading

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

END_BYTES = 8
MANY = 4096  # rows: sorting them takes less than to make an object of each


class Numbers:
    """Row numbers by key, counted in the order of `add`. Threads may share it."""

    def __init__(self) -> None:
        self._few: dict[str, int] = {}
        self._many: list[_Sorted] = []
        self._new: list[pa.ChunkedArray] = []
        self._count = 0  # of rows that are not new
        self._changing = threading.Lock()

    def add(self, keys: pa.ChunkedArray) -> None:
        """Number these keys; the work is put off until the first is looked up."""
        with self._changing:
            self._new.append(keys)

    def get(self, key: str) -> int | None:
        """Return the number of a row of `key`, any one of several; None if there is none."""
        if self._new:
            self._take_in()
        number = self._few.get(key)
        if number is None and self._many:
            found = (keys.find(key) for keys in self._many)
            return next((number for number in found if number is not None), None)
        return number

    def _take_in(self) -> None:
        with self._changing:
            count = sum(map(len, self._new))
            if count >= MANY:
                chunks = [chunk for keys in self._new for chunk in keys.chunks]
                keys = pa.chunked_array(chunks, pa.string()).combine_chunks()
                self._many.append(_Sorted(keys, self._count))
            else:
                found = (key for keys in self._new for key in keys.to_pylist())
                self._few.update(zip(found, range(self._count, self._count + count), strict=True))
            self._count += count
            self._new = []


class _Sorted:
    """Keys in the order of their ends; the first of them is row `first`."""

    def __init__(self, keys: pa.StringArray, first: int) -> None:
        self._first = first
        ends = ends_of(keys)
        order = np.argsort(ends, kind="stable")
        # one number of a memoryview is had several times faster than one of an array
        self._ends, self._order = ends[order].data, order.data
        borders, letters = _buffers(keys)
        self._borders, self._letters = borders.data, letters.data

    def find(self, key: str) -> int | None:
        """Return the number of the row of `key`."""
        name, ends = key.encode(), self._ends
        end = int.from_bytes(name[-END_BYTES:], "big")
        at = bisect.bisect_left(ends, end)
        while at < len(ends) and ends[at] == end:
            number = self._order[at]
            if self._letters[self._borders[number] : self._borders[number + 1]] == name:
                return self._first + number
            at += 1
        return None


def ends_of(keys: pa.StringArray) -> npt.NDArray[np.uint64]:
    """Return the last eight bytes of each key as a uint64; all bytes of a shorter key."""
    ends = np.zeros(len(keys), np.uint64)
    borders, letters = _buffers(keys)
    for back in range(END_BYTES, 0, -1):
        at = borders[1:] - back
        here = np.where(at >= borders[:-1], letters[np.maximum(at, 0)], 0)
        ends = ends << np.uint64(8) | here.astype(np.uint64)
    return ends


def count_different(keys: pa.ChunkedArray) -> int:
    """Return the number of distinct keys.

    Only those are compared whose ends are those of others: a fifth of the time, less memory.
    """
    ends = np.concatenate([np.empty(0, np.uint64), *map(ends_of, keys.chunks)])
    ordered = np.sort(ends)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    alike = keys.filter(pa.array(np.isin(ends, repeated)))
    return len(keys) - len(alike) + int(pc.count_distinct(alike).as_py())


def _buffers(keys: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return the offsets of the keys (one more than keys) into their letters, and the letters."""
    _, offsets, letters = keys.buffers()
    borders = np.frombuffer(offsets, np.int32)[keys.offset :][: len(keys) + 1]
    return borders, np.frombuffer(letters, np.uint8)
