"""Ctrl-C that lets a step and its checkpoint finish."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..stage import Progress

# A launcher hands on the Ctrl-C that its processes have got from the terminal already.
ECHO_SECONDS = 1.0


@contextmanager
def finish_step_on_interrupt(
    progress: Progress, *, echoed: bool = False
) -> Iterator[Callable[[], bool]]:
    """Have the first Ctrl-C only ask to stop, and a second one stop at once, in the block.

    The block gets a function that says whether it was asked. Outside the main thread, where
    signals cannot be handled, nothing changes.

    Args:
        echoed: whether a launcher may send every Ctrl-C a second time, right after the first.
    """
    asked = threading.Event()
    first_at = 0.0

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if asked.is_set():
            if echoed and time.monotonic() - first_at < ECHO_SECONDS:
                return
            raise KeyboardInterrupt
        first_at = time.monotonic()
        asked.set()
        progress.say("Finishing this step and writing a checkpoint; Ctrl-C again leaves at once.")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before: Any = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
