"""Masks as loss weights: how much each pixel counts.

White counts fully, black not at all, grey in proportion: the value over the largest value of
its depth, of a coloured mask the luminance. What is transparent does not count: alpha
multiplies.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image

from .images import BinaryFile, decode, has_sixteen_bits, upright

WHITE, DEEP_WHITE = 255, 65535


def open_mask(file: BinaryFile) -> Image.Image:
    """Decode a mask and turn it upright; raises Unreadable."""
    return upright(decode(file))


def mask_values(mask: Image.Image) -> Float32[ndarray, "height width"]:
    """Return the weight in [0, 1] of each pixel of a decoded, upright mask."""
    if has_sixteen_bits(mask):
        return np.asarray(mask).astype(np.float32) / np.float32(DEEP_WHITE)
    if not mask.has_transparency_data:
        return np.asarray(mask.convert("L"), np.float32) / np.float32(WHITE)
    seen = mask.convert("RGBA")
    grey = np.asarray(seen.convert("RGB").convert("L"), np.float32)
    alpha = np.asarray(seen.getchannel("A"), np.float32)
    return grey * alpha / np.float32(WHITE * WHITE)
