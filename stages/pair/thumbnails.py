"""Thumbnails for the report, and how much of a picture an edit changes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures.images import Unreadable, open_small
from .geometry import ratios_differ

EDGE_PIXELS = 320
_QUALITY = 72
# A pixel counts as changed from here on, of 255: below it lies what JPEG does by itself.
_VISIBLE = 28
_COMPARED_EDGE = 128


def thumbnail_of(path: Path) -> Image.Image | None:
    """The whole upright picture, small; None where none can be made."""
    try:
        if not path.is_file():  # to open a pipe is to wait for whoever writes into it
            return None
        picture = open_small(path, EDGE_PIXELS)
    except (Unreadable, ValueError, OSError):
        return None
    picture.thumbnail((EDGE_PIXELS, EDGE_PIXELS))
    return picture


def as_link(picture: Image.Image | None) -> str | None:
    """The picture as a link that holds it."""
    if picture is None:
        return None
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def share_changed(before: Image.Image, after: Image.Image) -> float | None:
    """How much of a picture differs visibly, 0 to 1; None for pictures of other ratios."""
    if ratios_differ(before.size, after.size, tolerance=0.04):  # thumbnails are rounded
        return None
    scale = _COMPARED_EDGE / max(after.size)
    size = (max(round(after.width * scale), 1), max(round(after.height * scale), 1))
    one, two = (
        np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.int16)
        for picture in (before, after)
    )
    return float((np.abs(one - two).max(axis=2) >= _VISIBLE).mean())
