"""SIGTERM and SIGHUP stop a command as Ctrl-C does; a second signal ends the process at once.

A signal that was ignored when the command began (`nohup` has SIGHUP ignored) stays ignored.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType, MappingProxyType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A closing terminal sends SIGHUP, and so does its shell; a launcher hands on the Ctrl-C that its
# processes have got from the terminal already.
ECHO_SECONDS = 1.0

Handler = Callable[[int, FrameType | None], Any]


class Stopped(KeyboardInterrupt):
    """Raised when the command is to stop; `number` is the signal that asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code_of(error: KeyboardInterrupt) -> int:
    """Return the exit status that tells which signal ended the command: 130, 143 or 129."""
    return 128 + int(getattr(error, "number", signal.SIGINT))


def handle_signals(handler: Handler) -> dict[int, Any]:
    """Have `handler` called for all SIGNALS that are not ignored; return the former handlers."""
    return {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }


def stop(number: int, frame: FrameType | None) -> None:
    """Raise Stopped; the handler of the first signal of a command."""
    end_at_next_signal()
    raise Stopped(number)


def end_at_next_signal(
    former: Mapping[int, Any] = MappingProxyType({}), *, echoed: bool = False
) -> None:
    """Have the next signal end the process; an echo of the first does not.

    Args:
        former: handlers to be called instead.
        echoed: whether a launcher may send every signal a second time.
    """
    began = time.monotonic()

    def unless_echo(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - began > ECHO_SECONDS:
            signal.signal(number, former.get(number, signal.SIG_DFL))
            signal.raise_signal(number)

    for number in handle_signals(unless_echo):
        if number != signal.SIGHUP and not echoed:
            signal.signal(number, former.get(number, signal.SIG_DFL))
    _drop_closed_terminal()


def _drop_closed_terminal() -> None:
    """Send output to nowhere where the terminal has gone: to write to it would be an error."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)
            os.close(nowhere)
