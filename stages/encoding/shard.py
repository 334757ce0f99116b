"""A share of a caching stage's work: one of several machines does it and no more."""

from __future__ import annotations

from dataclasses import dataclass

from ...cache.errors import WrongUse


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the work, for as many machines."""

    number: int
    of: int

    def has(self, key: str) -> bool:
        return int(key[:8], 16) % self.of == self.number - 1


def shard_named(text: str) -> Shard:
    """The share that "2/8" names."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise WrongUse(f"--shard {text} is no share.", "Say 1/8 for the first of eight.")
    return Shard(int(number), int(of))
