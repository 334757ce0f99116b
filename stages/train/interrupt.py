"""Ctrl-C that lets a step and its checkpoint finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..stage import Progress


@contextmanager
def patient_interrupt(progress: Progress) -> Iterator[Callable[[], bool]]:
    """While the block runs, the first Ctrl-C only asks to stop; a second one stops at once.

    The block gets a function that says whether it was asked. Outside the main thread, where
    signals cannot be handled, nothing changes.
    """
    asked = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
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
