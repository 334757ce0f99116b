"""What a stage says when it shares its work with other processes, or is interrupted in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ...cache.files.lock import Holder
from ...cache.files.owner import can_be_asked
from ..stage import Progress

SAY_AGAIN_SECONDS = 60.0


class Waiting:
    """Tells for whom a stage waits that has nothing left to do itself, again every minute.

    Whether somebody on another host still runs cannot be known from here, and no clock of two
    hosts is compared: a claim that is released in time for another one is a sign of life.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._first_seen: dict[Holder, float] = {}
        self._say_at: float | None = None

    def __call__(self, holder: Holder) -> None:
        """All that is left is what `holder` has claimed; asked again and again."""
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
    return f"{what} If it runs no more: `qedit unlock --yes`, and this goes on."


@contextlib.contextmanager
def saying_what_is_kept(progress: Progress, made: Callable[[], int], rows: str) -> Iterator[None]:
    """On Ctrl-C, say how many `rows` were finished before; the part in work is given up."""
    try:
        yield
    except KeyboardInterrupt:
        count = made()
        kept = f"{count} {rows} were made and are kept" if count else f"no {rows} were made yet"
        progress.warn(f"{kept}; the part in work is given up.")
        raise
