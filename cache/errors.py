"""What can go wrong, in words: what is wrong, where, and what to type next.

Only `pipeline/terminal/run_command.py` turns these into text on the terminal and into an exit code.
"""

from __future__ import annotations

from typing import ClassVar


class QeditError(Exception):
    """Something a user can act on. `exit_code` is what the process ends with.

    Args:
        what: what is wrong and where, one sentence or a short list.
        do: what to type or change next; may be empty when `what` says it already.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, do: str = "") -> None:
        self.what, self.do = what, do
        super().__init__(f"{what}\n{do}" if do else what)


class WrongUse(QeditError):
    """A wrong option, configuration or folder: nothing was started."""

    exit_code = 2


class Unreachable(WrongUse):
    """What is named has to be fetched, and where it lies nobody answers."""


class AnotherRecipe(QeditError):
    """What lies there was made by other settings than these."""

    exit_code = 3


class NotComplete(QeditError):
    """An earlier stage has not done all that this one needs."""

    exit_code = 4


class Damaged(QeditError):
    """Bytes on disk are not the bytes that were written."""

    exit_code = 5


class Locked(QeditError):
    """Another process is writing there."""

    exit_code = 6


class OfOneProcess(QeditError):
    """What has gone wrong in one of several processes, which the others know nothing of."""


class Broken(Exception):
    """What lies on disk is not what was written; says how, not where. Becomes a Damaged."""
