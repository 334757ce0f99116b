"""Split work into shards for machines, and into runs that are written together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ...cache.errors import WrongUse

ITEMS_IN_PART = 64
PART_BYTES = 112 << 20  # 16384 tokens of embeds at full scale

Item = TypeVar("Item")


def cut(items: Iterable[Item], bytes_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield runs of `items`: each ends with the item that makes it large, or many, enough.

    What follows a run does not decide where it ends: if some of them are done, those that are
    left are cut from the items that are left as they were before. So a rerun makes the same
    batches, and with them the same bits.

    Args:
        bytes_of: about how many bytes of rows an item gives.
    """
    run: list[Item] = []
    size = 0
    for item in items:
        run.append(item)
        size += bytes_of(item)
        if size >= PART_BYTES or len(run) == ITEMS_IN_PART:
            yield run
            run, size = [], 0
    if run:
        yield run


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the work, for as many machines."""

    number: int
    of: int

    def has(self, key: str) -> bool:
        return int(key[:8], 16) % self.of == self.number - 1


def shard_named(text: str) -> Shard:
    """Return the shard that "2/8" names; raises WrongUse where the text names none."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise WrongUse(
            f"Invalid --shard '{text}'.", "Use K/N, e.g. 1/8 for the first of eight shards."
        )
    return Shard(int(number), int(of))
