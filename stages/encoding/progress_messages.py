"""The messages of a caching stage at work: whom it waits for, what is kept, what is slow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from ...cache.files.lock import Holder
from ...cache.files.owner import can_be_asked
from ..stage import Progress

SAY_AGAIN_SECONDS = 60.0
PARTS = ("decode", "encode", "write")
SHOWN_EVERY_SECONDS = 1.0


class WaitingNotice:
    """Says, again every minute, whom a stage waits for that has nothing left to do itself.

    Whether somebody on another host still runs cannot be known from here, and no clock of two
    hosts is compared: a claim that is released in time for another one is a sign of life.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._first_seen: dict[Holder, float] = {}
        self._say_at: float | None = None

    def __call__(self, holder: Holder) -> None:
        """Note that all that is left is claimed by `holder`; called again and again."""
        now, owner = time.monotonic(), holder.owner
        self._progress.note(waiting_for=f"process {owner.pid} on {owner.host}")
        first = self._first_seen.setdefault(holder, now)
        if self._say_at is None:
            # a process of this machine that runs is nothing to tell of, unless it lasts
            self._say_at = now + (SAY_AGAIN_SECONDS if can_be_asked(owner) else 0.0)
        if now >= self._say_at:
            self._say_at = now + SAY_AGAIN_SECONDS
            self._progress.warn(_in_words(holder, waited_seconds=now - first))


def _in_words(holder: Holder, *, waited_seconds: float) -> str:
    minutes = int(waited_seconds // 60)
    still = f", and it has finished nothing for {minutes} min" if minutes else ""
    what = f"All that is left is claimed by {holder}{still}."
    if can_be_asked(holder.owner):
        return f"{what} It is running; if it hangs, end it and this goes on."
    return f"{what} If it is no longer running, type `qedit unlock --yes`, and this goes on."


@contextlib.contextmanager
def saying_what_is_kept(progress: Progress, made: Callable[[], int], rows: str) -> Iterator[None]:
    """Say on Ctrl-C how many `rows` were finished before; the part in work is given up."""
    try:
        yield
    except KeyboardInterrupt:
        count = made()
        kept = f"{count} {rows} were made and are kept" if count else f"no {rows} were made yet"
        progress.warn(f"{kept}; the part in work is given up.")
        raise


class SpeedLog:
    """Counts the seconds of the thread that drives an encoder, in three parts.

    `decode`: it waited for pictures to be read. `encode`: the encoder was at work. `write`: it
    waited for rows to be written. Reading and writing go on beside it all the time, so the
    largest of the three is what a run is as slow as.
    """

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._progress = progress
        self._shown = time.monotonic()

    @contextlib.contextmanager
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
        """Return `decode`, `encode` or `write`: the part that took longest."""
        return bottleneck_of(self.seconds)


def bottleneck_of(seconds: Mapping[str, float]) -> str:
    """Return the part that took longest."""
    return max(PARTS, key=lambda part: seconds.get(part, 0.0))


def facts_of(seconds: Mapping[str, float]) -> dict[str, object]:
    """Return the facts for `--json` of where the time went; none if no time was spent."""
    if not any(seconds.values()):
        return {}
    times = {part: round(seconds.get(part, 0.0), 3) for part in PARTS}
    return {"bottleneck": bottleneck_of(seconds), "bottleneck_seconds": times}
