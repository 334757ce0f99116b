"""Every error that a user can act on, with the exit code that the command ends with.

    QeditError             1   something failed
    ├── WrongUse           2   an option, a configuration or a folder is wrong; nothing was started
    │   └── Unreachable    2   a model has to be fetched, and its server does not answer
    ├── AnotherRecipe      3   the folder holds results of other settings
    ├── NotComplete        4   an earlier stage has not made all that this one needs
    ├── Damaged            5   bytes on disk are not the bytes that were written
    ├── Locked             6   another process is writing there
    ├── NoRoom             1   the disk is full
    └── OfOneProcess       1   one of several processes failed, and the others do not know it

    Broken                 -   whoever knows the file names it in another error

Besides these, a command ends with 0 when all is done, and with 130, 143 or 129 after Ctrl-C,
SIGTERM or SIGHUP. An error says what is wrong, where, and what to type next;
`pipeline/terminal/run_command.py` alone prints it.
"""

from __future__ import annotations

from typing import ClassVar


class QeditError(Exception):
    """An error that a user can act on. `exit_code` is the exit status of the process.

    Args:
        what: what is wrong and where, one sentence or a short list.
        do: what to type or change next; may be empty when `what` says it already.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, do: str = "") -> None:
        self.what, self.do = what, do
        super().__init__(f"{what}\n{do}" if do else what)


class WrongUse(QeditError):
    """Raised for a wrong option, configuration or folder, before anything was started."""

    exit_code = 2


class NoRoom(QeditError):
    """Raised when a disk, or a quota, has no room for what is written."""


class Unreachable(WrongUse):
    """Raised when something must be downloaded and the host does not answer."""


class AnotherRecipe(QeditError):
    """Raised when the files in a folder were made with other settings than the present ones."""

    exit_code = 3


class NotComplete(QeditError):
    """Raised when an earlier stage has not finished what this one needs."""

    exit_code = 4


class Damaged(QeditError):
    """Raised when bytes on disk are not the bytes that were written."""

    exit_code = 5


class Locked(QeditError):
    """Raised when another process is writing in the same folder."""

    exit_code = 6


class OfOneProcess(QeditError):
    """Raised for an error in one of several processes that the others do not know of."""


class Broken(Exception):
    """Raised for unreadable data; says how, not where. Callers name the file in their error."""
