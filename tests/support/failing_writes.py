"""Has writing fail after so many bytes or files."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, BinaryIO

from qedit.cache.files import atomic


class Trouble:
    """Lets `atomic` write so many bytes and open so many files; then raises `error`."""

    def __init__(self, error: BaseException, *, bytes: int = 2**62, files: int = 2**62) -> None:
        self.error, self.bytes, self.files = error, bytes, files
        self.really = atomic._open_new

    def __enter__(self) -> Trouble:
        atomic._open_new = self.open
        return self

    def __exit__(self, *error: object) -> None:
        atomic._open_new = self.really

    def open(self, path: Path) -> Any:
        self.files -= 1
        if self.files < 0:
            raise self.error
        return TroubledFile(self.really(path), self)


class TroubledFile:
    def __init__(self, file: BinaryIO, trouble: Trouble) -> None:
        self.file, self.trouble = file, trouble

    def write(self, data: bytes | memoryview) -> None:
        data = memoryview(data).cast("B")
        self.file.write(data[: self.trouble.bytes])
        self.trouble.bytes -= len(data)
        if self.trouble.bytes < 0:
            raise self.trouble.error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> TroubledFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def full_disk() -> OSError:
    """What a disk without room raises."""
    return OSError(errno.ENOSPC, "No space left on device")
