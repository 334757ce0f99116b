"""Pictures opened as `pair` saw them, for an encoder or for the loss's weights."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ...cache.errors import NotComplete
from ...cache.files.fingerprint import digest_bytes
from ..pictures.images import Unreadable, open_upright
from ..samples.sample import Picture
from .encoder import Unfit

# May pass by themselves, so they end a run and are no result.
PASSING = frozenset({"permission_denied", "not_readable_now"})


def bytes_as_paired(folder: Path, picture: Picture) -> io.BytesIO:
    """Read the file of `picture`, if its bytes are still those that were paired.

    A row is named by the bytes that `pair` saw: other bytes must never be stored under it.

    Raises:
        NotComplete: the file has changed or gone since `pair` looked at it.
    """
    path = folder / picture.path
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotComplete(
            f"{path} is gone since the pairs were made.",
            "Put it back, or run `qedit pair` again.",
        ) from None
    if digest_bytes(data) != picture.digest:
        raise NotComplete(
            f"{path} has changed since the pairs were made.", "Run `qedit pair` again."
        )
    return io.BytesIO(data)


def open_to_encode(folder: Path, picture: Picture) -> Image.Image:
    """Open `picture`, upright and composited, if its bytes are still those that were paired.

    Raises:
        NotComplete: the file has changed or gone since `pair` looked at it.
        Unfit: it cannot be decoded (`pair --quick` looks at headers alone).
    """
    data = bytes_as_paired(folder, picture)
    try:
        return open_upright(data, name=str(folder / picture.path))
    except Unreadable as error:
        if error.reason in PASSING:
            raise
        raise Unfit(error.reason, error.detail) from error
