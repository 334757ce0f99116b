"""What a stage says when it shares its work with other processes, or is interrupted in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..cache.lock import Holder
from .stage import Progress


def say_who_is_at_work(progress: Progress, holder: Holder) -> None:
    """Tell for whom a stage waits that has nothing left to do itself."""
    owner = holder.owner
    progress.note(waiting_for=f"process {owner.pid} on {owner.host}")


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
