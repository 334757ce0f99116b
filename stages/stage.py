"""The two ends of a stage: the progress that it reports to, and the outcome that it returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives what a stage reports while it works; a stage never prints by itself."""

    def bar(
        self, total: int, what: str, *, unit: str = "row", initial: int = 0
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Show a long step; the block gets a function that moves it on by so many units."""
        ...

    def note(self, **values: str) -> None:
        """Show short facts (a loss, a rate) beside the running bar."""
        ...

    def say(self, line: str) -> None:
        """Tell the user one line."""
        ...

    def warn(self, line: str) -> None:
        """Tell the user one line that asks for attention."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The result of a stage: `wanted = kept + computed + failed` rows.

    `where` is the folder (or file) the results lie in; `facts` are further counts and
    names for `--json`, `lines` further sentences for the terminal.
    """

    stage: str
    wanted: int
    kept: int
    computed: int
    failed: int
    seconds: float
    where: str
    unit: str = "rows"
    facts: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
