"""Masks in, rows of loss weights out: how much each latent pixel of the target counts.

The picture is brought to latent resolution by averaging areas, in one step and in floating
point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...cache.store.rejected_rows import RejectedRow
from ...config.configuration import Configuration
from ...config.latent_geometry import latent_size
from ..encoding.encoder import EncodedItem, Encoder, Unfit
from ..encoding.open_pictures import PASSING, bytes_as_paired
from ..pictures.images import Unreadable
from ..pictures.mask_weights import mask_values, open_mask
from ..samples.sample import Picture
from ..samples.table import picture_folders
from ..stores.bfloat16 import bits_of
from ..stores.row_kinds import RowKind

STAGE = "cache-vae"


def weights_of(
    mask: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """Return the weights of a decoded, upright mask: float32 in [0, 1], [1, height / 8, width / 8].

    Args:
        box: what of the mask is used, in (fractional) pixels.
        size: of the target in pixels.
    """
    values = Image.fromarray(mask_values(mask))
    small = values.resize(latent_size(size), Image.Resampling.BOX, box=box)
    return np.clip(np.asarray(small, np.float32), 0.0, 1.0)[None]


class MaskReading:
    """Makes rows of masks: everything is done where pictures are read."""

    device = torch.device("cpu")

    def __init__(self, configuration: Configuration) -> None:
        self._folders = picture_folders(configuration)

    def read(self, item: Picture) -> np.ndarray:
        """Return the weights; raises Unfit where the file is broken or the mask selects nothing."""
        try:
            mask = open_mask(bytes_as_paired(self._folders[item.dataset], item))
        except Unreadable as error:
            if error.reason in PASSING:
                raise
            raise Unfit(error.reason, error.detail) from error
        weights = weights_of(mask, item.box, item.size)
        if not weights.any():
            raise Unfit("empty_mask", "the mask is black all over: nothing would be learnt")
        return bits_of(torch.from_numpy(weights))

    def cost(self, item: Picture) -> int:
        """Return 1: nothing is encoded."""
        return 1

    def together(self, first: Picture, other: Picture) -> bool:
        """Return True: nothing is encoded."""
        return True

    def rejected(self, item: Picture, unfit: Unfit) -> EncodedItem:
        """Reject the weights."""
        row = RejectedRow(
            item.weight_key, STAGE, item.dataset, item.path, unfit.reason, unfit.detail
        )
        return EncodedItem(rejected={RowKind.WEIGHTS: [row]})

    def name(self, item: Picture) -> str:
        """Return the path of the file."""
        return str(self._folders[item.dataset] / item.path)

    def open(self) -> Encoder:
        """Return this object: there is no model."""
        return self

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[EncodedItem]:
        """Return as rows what was read."""
        return [
            EncodedItem(rows={RowKind.WEIGHTS: {item.weight_key: row}})
            for item, row in zip(items, read, strict=True)
        ]
