"""Listens to a stage and keeps what it says, for tests to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Quiet:
    """The Progress protocol, on nothing but lists."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.moved = 0

    @contextmanager
    def bar(
        self, total: int, what: str, *, unit: str = "row", initial: int = 0
    ) -> Iterator[Callable[[int], None]]:
        def move(count: int) -> None:
            self.moved += count

        yield move

    def note(self, **values: str) -> None:
        pass

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.warned.append(line)
