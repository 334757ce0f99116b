"""The output of `qedit status`: a line for each kind of result, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .output import counted, size


@dataclass(frozen=True)
class Line:
    """The state of one stage's results: rows wanted and there, bytes, other recipes beside.

    Attributes:
        countable: whether it is known how many are wanted; if not, `say` tells why.
        datasets: the same of every main dataset with its references, where there are several.
    """

    what: str
    wanted: int
    there: int
    count_bytes: int = 0
    other_recipes: int = 0
    orphaned: int = 0
    say: str = ""
    countable: bool = True
    datasets: tuple[Line, ...] = ()

    def texts(self) -> Iterator[str]:
        """Yield the line, and one for each dataset."""
        yield f"{self.what:14} {', '.join(self._facts())}"
        for line in self.datasets:
            yield f"  {line.what:12} {', '.join(line._facts())}"

    def _facts(self) -> Iterator[str]:
        if self.countable:
            missing = self.wanted - self.there
            yield f"{self.there} of {self.wanted}"
            yield f"{missing} missing" if missing > 0 else "complete"
        if self.count_bytes:
            yield size(self.count_bytes)
        if self.orphaned:
            yield f"{counted(self.orphaned, 'row')} that no table names (`qedit gc`)"
        if self.other_recipes:
            yield f"{self.other_recipes} other recipe(s) beside"
        if self.say:
            yield self.say

    def as_object(self) -> dict[str, Any]:
        """Return its object for `--json`."""
        return {
            "what": self.what,
            "wanted": self.wanted,
            "kept": self.there,
            "missing": max(0, self.wanted - self.there),
            "bytes": self.count_bytes,
            "other_recipes": self.other_recipes,
            "orphaned": self.orphaned,
            "say": self.say,
            **({"datasets": [line.as_object() for line in self.datasets]} if self.datasets else {}),
        }


@dataclass
class Status:
    """A line for each kind of result, and what to type next."""

    found: list[Line] = field(default_factory=list)
    next_command: str = ""  # a sentence that says what to type

    def lines(self) -> Iterator[str]:
        for line in self.found:
            yield from line.texts()
        if self.next_command:
            yield self.next_command

    def as_object(self) -> dict[str, Any]:
        """Return the object of `qedit status --json`."""
        return {
            "stage": "status",
            "results": [line.as_object() for line in self.found],
            "next": self.next_command,
        }
