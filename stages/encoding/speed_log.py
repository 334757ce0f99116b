"""Where the time goes while an encoder is fed, and what the others wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..stage import Progress

PARTS = ("decode", "encode", "write")
SHOWN_EVERY_SECONDS = 1.0


class Pace:
    """Seconds that the one thread which drives an encoder spent in each of three ways.

    `decode`: it waited for pictures to be read. `encode`: the encoder was at work. `write`: it
    waited for rows to be written. Reading and writing go on beside it all the time, so the
    largest of the three is what a run is as slow as.
    """

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._progress = progress
        self._shown = time.monotonic()

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Count what the block takes, and show now and then what the bottleneck is."""
        started = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self.seconds[on] += now - started
            if now - self._shown >= SHOWN_EVERY_SECONDS:
                self._shown = now
                self._progress.note(bottleneck=self.bottleneck())

    def bottleneck(self) -> str:
        """`decode`, `encode` or `write`: where most of the time went."""
        return bottleneck_of(self.seconds)


def bottleneck_of(seconds: Mapping[str, float]) -> str:
    """The largest of the three."""
    return max(PARTS, key=lambda part: seconds.get(part, 0.0))


def facts_of(seconds: Mapping[str, float]) -> dict[str, object]:
    """What `--json` says of where the time went; nothing where none did."""
    if not any(seconds.values()):
        return {}
    times = {part: round(seconds.get(part, 0.0), 3) for part in PARTS}
    return {"bottleneck": bottleneck_of(seconds), "bottleneck_seconds": times}
