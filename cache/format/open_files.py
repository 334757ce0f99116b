"""Files kept open between reads, because opening one costs as much as reading a row from it.

Safe for threads: a file that is given up is closed when the last one who reads from it is done.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import numpy.typing as npt

from ..errors import Broken
from ..files.failing_disk import LOST, io_errors_as_damaged
from .mapped_file import MappedFile, mapped_file

MOST_OPEN = 128  # of the 256 (macOS) or 1024 files that a process may have open
# What is mapped counts as this process's memory. Of larger caches most rows are read once in a
# long while, and the first copy from a map costs what a later one saves.
MOST_MAPPED_BYTES = 1 << 30


class OpenFile:
    """A file for reads at given offsets; closed when it is no longer referenced."""

    __slots__ = ("_mapped", "mapped_bytes", "number")

    def __init__(self, path: str) -> None:
        self.number, self.mapped_bytes = -1, 0
        self._mapped: MappedFile | None = None
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # no pipe

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)

    def size(self) -> int:
        """Return its length in bytes, as it is now."""
        return os.fstat(self.number).st_size

    def map(self) -> None:
        """Copy from a memory map from now on where pages lie in memory (see mapped_file.py)."""
        self._mapped = mapped_file(self.number)
        self.mapped_bytes = 0 if self._mapped is None else self.size()

    def fill(self, space: npt.NDArray[np.uint8], offset: int) -> None:
        """Fill `space` (uint8) with the bytes at `offset`, in as many system calls as it takes.

        Raises:
            Broken: the file is too short, cannot be read, or has gone (on a network's disk).
        """
        try:
            if self._mapped is not None and self._mapped.copy(space, offset):
                return
            got = os.preadv(self.number, (space.data,), offset)
            while got < len(space):
                if got == 0:
                    raise Broken("the shard's file is too short")
                space, offset = space[got:], offset + got
                got = os.preadv(self.number, (space.data,), offset)
        except OSError as error:
            if error.errno not in LOST:
                raise
            raise Broken(f"the disk cannot read it ({error.strerror})") from error


class OpenFiles:
    """The files opened last, up to a number; the oldest is given up first.

    Args:
        most: files.
        most_mapped_bytes: how much of them is mapped (`mapped_file.py`), the first ones opened.
    """

    def __init__(self, most: int = MOST_OPEN, *, most_mapped_bytes: int = 0) -> None:
        self._most, self._left_bytes = most, most_mapped_bytes
        self._files: dict[str, OpenFile] = {}
        self._changing = threading.Lock()

    def get(self, path: str) -> OpenFile:
        """Return the file at `path`, opened if it is not open; raise Broken if there is none."""
        file = self._files.get(path)
        return self._opened(path) if file is None else file

    def _opened(self, path: str) -> OpenFile:
        try:
            with io_errors_as_damaged():
                file = OpenFile(path)
        except FileNotFoundError as error:
            raise Broken(f"the file {os.path.basename(path)} is missing") from error
        with self._changing:
            if path in self._files:  # another thread was faster
                return self._files[path]
            if file.size() <= self._left_bytes:
                file.map()
            self._files[path] = file
            self._left_bytes -= file.mapped_bytes
            while len(self._files) > self._most:
                self._left_bytes += self._files.pop(next(iter(self._files))).mapped_bytes
        return file
