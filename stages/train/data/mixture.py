"""The samples of several sources as one sequence, known by columns of numbers."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import overload

import numpy as np

from ...samples.lazy_samples import Rows, Shape, Shapes, groups_in, shapes_in
from ...samples.sample import Sample


class Mixture(Sequence[Sample]):
    """A sequence of the samples of `parts`; a part makes a sample when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self._parts = parts
        self._starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return [self[row] for row in range(len(self))[place]]
        row = range(len(self))[place]
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]

    def __iter__(self) -> Iterator[Sample]:
        return chain.from_iterable(self._parts)

    @cached_property
    def shapes(self) -> Shapes:
        """Return the shape of every sample."""
        numbers: dict[Shape, int] = {}
        columns = [np.empty(0, np.int64)]
        for part in map(shapes_in, self._parts):
            known = [numbers.setdefault(shape, len(numbers)) for shape in part.distinct]
            columns.append(np.asarray(known, np.int64)[part.numbers])
        return Shapes(np.concatenate(columns), tuple(numbers))


def turns(samples: Sequence[Sample], *, name: str) -> tuple[Rows, Rows, np.ndarray]:
    """Return the rows with those of one group together, and the groups' sizes and hashes.

    A sample without a group is one of its own, and comes after all groups.

    Args:
        name: of the dataset, which goes into the hashes.
    """
    encoded = groups_in(samples).dictionary_encode()
    groups = encoded.dictionary.to_pylist()
    numbers = encoded.indices.to_numpy()
    is_alone = np.asarray([not group for group in groups], bool)[numbers]
    rows = np.argsort(np.where(is_alone, len(groups), numbers), kind="stable")
    sizes = np.bincount(numbers[~is_alone], minlength=len(groups))
    named = [number for number, group in enumerate(groups) if group]
    hashes = np.asarray([_hash(f"{name}/{groups[number]}") for number in named], np.uint64)
    alone = int(is_alone.sum())
    return (
        rows,
        np.concatenate([sizes[named], np.ones(alone, np.int64)]).astype(np.int64),
        np.concatenate([hashes, np.zeros(alone, np.uint64)]),
    )


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
