"""Split the samples of a step among several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Slice(Generic[Item]):
    """Neighbours in a step that go through the model together.

    Attributes:
        first_position: the place of the first one among all samples of the step.
    """

    first_position: int
    items: tuple[Item, ...]


def share_of(batches: Sequence[Sequence[Item]], rank: int = 0, world: int = 1) -> list[Slice[Item]]:
    """Return what process `rank` of `world` takes of a step's batches.

    All samples of the step stand in one line, and each process takes the same number of
    neighbours, give or take one; a batch is cut only where a border falls into it. Together
    the shares are the step, each sample in one of them. A share may be empty, where a step
    has fewer samples than there are processes. Positions are those in the whole step, and so
    is what is drawn for them.

    >>> share_of(["abc", "d"], rank=1, world=2)
    [Slice(first_position=2, items=('c',)), Slice(first_position=3, items=('d',))]
    """
    total = sum(len(batch) for batch in batches)
    begin, end = total * rank // world, total * (rank + 1) // world
    slices = []
    first = 0
    for batch in batches:
        low, high = max(begin - first, 0), min(end - first, len(batch))
        if low < high:
            slices.append(Slice(first + low, tuple(batch[low:high])))
        first += len(batch)
    return slices
