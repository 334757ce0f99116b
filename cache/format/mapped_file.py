"""Reads from a memory map, for pages that already lie in memory; the row reader's fast path.

Measured gain: copying cached pages from a map takes about a seventh less time than `pread`.

A page that must first come from the disk is many times slower through a map, and if the disk
fails, the process dies of SIGBUS without a message. So each copy asks first:

1. `mincore`: are all pages in memory? If not, nothing is copied and the caller uses `pread`.
2. The file's length: `mincore` may still find pages behind the end of a truncated file.

Only a page that is evicted in the 30 microseconds after these questions, on a disk that fails
at the same moment, would still end the process.

Linux only. Where `mincore` does not tell the truth (some sandboxes), nothing is mapped.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

SMALLEST_BYTES = 1 << 16  # of a copy: with less the question costs what the copy saves
LARGEST_BYTES = 1 << 24
PAGE_BYTES = mmap.PAGESIZE
_GONE, _THERE = 0, 1  # what `mincore` says of a page

Mincore = Callable[[int, int, int], int]


class _Answers(threading.local):
    """The answer of `mincore`, a byte for each page; every thread has its own."""

    def __init__(self) -> None:
        self.pages = bytearray(LARGEST_BYTES // PAGE_BYTES + 2)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))


_ANSWERS = _Answers()


class MappedFile:
    """A map of the whole open file of this descriptor."""

    __slots__ = ("_address", "_bytes", "_length", "_mincore", "_number")

    def __init__(self, number: int, mincore: Mincore) -> None:
        mapped = mmap.mmap(number, 0, prot=mmap.PROT_READ)
        self._bytes, self._mincore = np.frombuffer(mapped, np.uint8), mincore
        self._address, self._length = self._bytes.ctypes.data, len(self._bytes)
        self._number = number

    def copy(self, space: npt.NDArray[np.uint8], offset: int) -> bool:
        """Fill `space` with the bytes at `offset` if all lie in memory; return whether they did."""
        length = len(space)
        if not SMALLEST_BYTES <= length <= LARGEST_BYTES or offset + length > self._length:
            return False
        before, answers = offset % PAGE_BYTES, _ANSWERS
        asked = before + length
        if self._mincore(self._address + offset - before, asked, answers.address):
            return False
        if answers.pages.find(_GONE, 0, (asked + PAGE_BYTES - 1) // PAGE_BYTES) >= 0:
            return False
        if offset + length > os.lseek(self._number, 0, os.SEEK_END):  # it was cut off
            return False
        space[:] = self._bytes[offset : offset + length]
        return True


def mapped_file(number: int) -> MappedFile | None:
    """Return a map of the file of this descriptor; None where mapping is not safe or possible."""
    mincore, about = _mincore(), os.fstat(number)
    # of a file that belongs to others the system does not tell, but says "in memory" always
    if mincore is None or about.st_uid != os.geteuid():
        return None
    try:
        return MappedFile(number, mincore)
    except (OSError, ValueError):  # this file system cannot, or there is nothing in it
        return None


@functools.cache
def _mincore() -> Mincore | None:
    """Return the system's `mincore`; None if there is none that tells the truth."""
    if sys.platform != "linux":
        return None
    mincore = ctypes.PyDLL(None).mincore  # keeps the interpreter: it is done in a moment
    mincore.argtypes = [ctypes.c_size_t] * 3  # addresses as numbers: the shortest way
    return mincore if tells_the_truth(mincore) else None


def tells_the_truth(mincore: Mincore) -> bool:
    """Return whether `mincore` tells a present page from an absent one; some sandboxes do not."""
    page = mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address, answers = np.frombuffer(page, np.uint8).ctypes.data, []
    for value in (0, 1):
        if value:
            page[0] = value  # to write to it puts it there
        if mincore(address, PAGE_BYTES, _ANSWERS.address):
            return False
        answers.append(_ANSWERS.pages[0])
    return answers == [_GONE, _THERE]
