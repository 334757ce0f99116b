"""Signals that let a step and its checkpoint finish before the training stops."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from ..stage import Progress
from ..stop_signals import end_at_next_signal, handle_signals

# How long the other processes may take to come to the end of the step as well: so many seconds,
# and so many steps. One that has died, or hangs, never comes there.
ANSWER_SECONDS = 10.0
ANSWER_STEPS = 2


@dataclass
class StopRequest:
    """Says whether a signal has asked the training to stop.

    Attributes:
        number: of that signal; 0: none has.
        step_seconds, save_seconds: what a step and a checkpoint took last; 0: none was made yet.
        answered: set when all processes have agreed to stop.
    """

    number: int = 0
    step_seconds: float = 0.0
    save_seconds: float = 0.0
    answered: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> bool:
        return self.number > 0

    def in_words(self) -> str:
        """Return what is done now, and about how long it takes as far as that was measured."""
        seconds = math.ceil(self.step_seconds + self.save_seconds)
        long = f" (about {seconds} s)" if seconds else ""
        return f"Finishing this step and writing a checkpoint{long}; Ctrl-C again leaves at once."

    def leave_unless_answered(self, heard: int) -> None:
        """End the process some seconds after a signal, unless all processes agreed to stop.

        For a thread of its own: the main one may wait in a sum for processes that have died,
        where it hears no signal.

        Args:
            heard: the end of a pipe to read signals from.
        """
        number = os.read(heard, 1)[0]
        seconds = ANSWER_SECONDS + ANSWER_STEPS * self.step_seconds
        if not self.answered.wait(seconds):
            text = f"The other processes have not answered for {seconds:.0f} s: this one leaves."
            with suppress(OSError):
                os.write(2, f"{text} The same command goes on from the last checkpoint.\n".encode())
            os._exit(128 + number)


@contextmanager
def finish_step_on_signal(progress: Progress, *, several: bool = False) -> Iterator[StopRequest]:
    """Have the first signal only ask to stop, and a second one stop at once, in the block.

    Outside the main thread, where signals cannot be handled, nothing changes.

    Args:
        several: whether this is one of several processes, which must agree to stop.
    """
    request = StopRequest()

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.number = number
        end_at_next_signal(former, echoed=several)
        with suppress(OSError, RuntimeError):  # in the middle of another line
            progress.say(request.in_words())

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = handle_signals(on_signal)
    if several:
        heard, sent = os.pipe()
        os.set_blocking(sent, False)
        signal.set_wakeup_fd(sent)
        leave = request.leave_unless_answered
        threading.Thread(target=leave, args=(heard,), daemon=True).start()
    try:
        yield request
    finally:
        request.answered.set()
        for number, before in former.items():
            signal.signal(number, before)
