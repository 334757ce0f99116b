"""What a failing disk no longer gives: it is as good as other bytes than were written, damaged."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..errors import Broken

# a sector that cannot be read, what has gone from a network's disk, and what file systems
# answer that find their own tables damaged
LOST = (errno.EIO, errno.ESTALE, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))


@contextlib.contextmanager
def lost_is_broken() -> Iterator[None]:
    """Raise Broken where the disk cannot give what the block reads."""
    try:
        yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        raise Broken(f"the disk cannot read it ({error.strerror})") from error


def bytes_of(path: Path) -> bytes:
    """All that the file at `path` holds; raises Broken if the disk cannot read it."""
    with lost_is_broken():
        return path.read_bytes()
