"""Pictures in, latent rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ...cache.store.rejected_rows import RejectedRow
from ...config.configuration import Configuration
from ..encoding.encoder import EncodedItem, Encoder, Unfit
from ..encoding.open_pictures import open_to_encode
from ..encoding.spool import Spool, spool_key
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.device import best_device, dtype_named
from ..models.vae import LatentEncoder
from ..pictures.images import pixels, resized
from ..samples.sample import Picture
from ..samples.table import picture_folders
from ..stores.bfloat16 import bits_of
from ..stores.row_kinds import RowKind
from .one_file import OneFile

STAGE = "cache-vae"
MOST_PICTURES = 16
PIXELS_WHERE_NOTHING_IS_KNOWN = 1024 * 1024


@dataclass(frozen=True)
class Decoded:
    """A file in every size for the VAE, and the pictures of it that the next stage wants.

    Attributes:
        values: pixels, for each of the file's pictures.
        shown: by key, rows of the spool.
    """

    values: list[UInt8[np.ndarray, "_height _width 3"]]
    shown: dict[str, np.ndarray]


class PictureEncoding:
    """Reads, compares and names pictures.

    Args:
        shown: by latent key, the references whose pictures for the vision language encoder
            are made of the same decode and left in `spool`.
    """

    def __init__(
        self,
        configuration: Configuration,
        checkpoint: Checkpoint,
        *,
        device: str,
        spool: Spool | None = None,
        shown: Mapping[str, Sequence[Picture]] | None = None,
    ) -> None:
        self._settings, self._checkpoint = configuration.settings, checkpoint
        self._folders = picture_folders(configuration)
        self._device, self._spool, self._shown = device, spool, shown or {}

    def read(self, item: OneFile) -> Decoded:
        """Decode the file once, and resize it to every size that is wanted."""
        opened = open_to_encode(self._folders[item.first.dataset], item.first)
        values = [
            np.asarray(resized(opened, picture.box, picture.size), np.uint8)
            for picture in item.pictures
        ]
        shown: dict[str, np.ndarray] = {}
        for picture in item.pictures:
            for wanted in self._shown.get(picture.latent_key, ()):
                assert self._spool is not None
                assert wanted.vl_size is not None, "references always have one"
                row = self._spool.row_of(resized(opened, wanted.box, wanted.vl_size))
                if row is not None:
                    shown[spool_key(wanted)] = row
        return Decoded(values, shown)

    def cost(self, item: OneFile) -> int:
        """Return the pixels of its largest size: sizes are encoded one after the other."""
        return max(width * height for width, height in item.sizes)

    def together(self, first: OneFile, other: OneFile) -> bool:
        """Return whether both are wanted in the same sizes."""
        return first.sizes == other.sizes

    def rejected(self, item: OneFile, unfit: Unfit) -> EncodedItem:
        """Reject the latents of every size."""
        return EncodedItem(
            rejected={RowKind.LATENTS: [_rejected(picture, unfit) for picture in item.pictures]}
        )

    def name(self, item: OneFile) -> str:
        """Return the path of the file."""
        return str(self._folders[item.first.dataset] / item.first.path)

    def open(self) -> Encoder:
        """Load the VAE."""
        return OnDevice(
            LatentEncoder.load(
                self._checkpoint,
                dtype=dtype_named(self._settings.vae_dtype),
                device=best_device(self._device),
            )
        )


class OnDevice:
    """The VAE on its device: pictures travel as bytes, a quarter of their floats."""

    def __init__(self, encoder: LatentEncoder) -> None:
        self._encoder = encoder
        self._signed = signed_values().to(self.device)

    @property
    def device(self) -> torch.device:
        return torch.device(self._encoder.vae.device)

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[EncodedItem]:
        """Return the latents of each file; those alone that are NaN or infinite are rejected."""
        made = [_nothing_yet(decoded) for decoded in read]
        for place in range(len(items[0].pictures)):
            values = torch.from_numpy(np.stack([decoded.values[place] for decoded in read]))
            signed = self._signed[values.to(self.device).long()].permute(0, 3, 1, 2)
            for rows, item, latent in zip(made, items, self._encoder.encode(signed), strict=True):
                _add(rows, item.pictures[place], latent)
        return made


def signed_values() -> Float[Tensor, " 256"]:
    """Return what `images.pixels` makes of each value of a byte: the same bits on every device."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGB")
    return torch.from_numpy(pixels(ramp)[0, 0])


def _nothing_yet(read: Decoded) -> EncodedItem:
    return EncodedItem(
        rows={RowKind.LATENTS: {}, RowKind.PICTURES: read.shown}, rejected={RowKind.LATENTS: []}
    )


def _add(made: EncodedItem, picture: Picture, latent: Tensor) -> None:
    if bool(torch.isfinite(latent).all()):
        made.rows[RowKind.LATENTS][picture.latent_key] = bits_of(latent)
        made.datasets[picture.latent_key] = picture.dataset
        return
    unfit = Unfit(
        "nan_latents", 'the VAE gives NaN or infinite values (`vae_dtype: "fp32"` is safe)'
    )
    made.rejected[RowKind.LATENTS].append(_rejected(picture, unfit))


def _rejected(picture: Picture, unfit: Unfit) -> RejectedRow:
    return RejectedRow(
        picture.latent_key, STAGE, picture.dataset, picture.path, unfit.reason, unfit.detail
    )
