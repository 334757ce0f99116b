"""Reads that raise Broken where the disk fails, so that lost bytes count as damaged ones."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..errors import Broken
from ..regular_file import content_of

# a sector that cannot be read, what has gone from a network's disk, and what file systems
# answer that find their own tables damaged
LOST = (errno.EIO, errno.ESTALE, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))


@contextlib.contextmanager
def io_errors_as_damaged() -> Iterator[None]:
    """Raise Broken for the I/O errors of the block that mean a failing disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        raise Broken(f"the disk cannot read it ({error.strerror})") from error


def bytes_of(path: Path, most_bytes: int | None = None) -> bytes:
    """Return the content of the file at `path`.

    Raises:
        Broken: the disk cannot read it, or as `content_of`.
    """
    with io_errors_as_damaged():
        return content_of(path, most_bytes)
