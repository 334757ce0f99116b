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

from ...config.configuration import Configuration
from ..encoding.encoder import Encoder, Made, Unfit
from ..encoding.opening import open_to_encode
from ..encoding.spool import Spool, spool_key
from ..images import pixels, resized
from ..models.checkpoint import Checkpoint
from ..models.device import best_device, dtype_named
from ..models.vae import LatentEncoder
from ..rejected_rows import RejectedRow
from ..samples import Picture
from ..stores import picture_folders
from ..tensors import bits_of

STAGE = "cache-vae"
LATENTS, SHOWN = "latents", "shown"
MOST_PICTURES = 16
PIXELS_WHERE_NOTHING_IS_KNOWN = 1024 * 1024


@dataclass(frozen=True)
class Decoded:
    """One picture at the VAE's size, and as rows of the spool what the next stage wants of it."""

    values: UInt8[np.ndarray, "height width 3"]
    shown: dict[str, np.ndarray]


class PictureEncoding:
    """What the engine asks about pictures.

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

    def read(self, item: Picture) -> Decoded:
        """Decode it once, and bring it to every size it is wanted in."""
        opened = open_to_encode(self._folders[item.dataset], item)
        values = np.asarray(resized(opened, item.box, item.size), np.uint8)
        shown: dict[str, np.ndarray] = {}
        for wanted in self._shown.get(item.latent_key, ()):
            assert self._spool is not None
            assert wanted.vl_size is not None, "references always have one"
            row = self._spool.row_of(resized(opened, wanted.box, wanted.vl_size))
            if row is not None:
                shown[spool_key(wanted)] = row
        return Decoded(values, shown)

    def cost(self, item: Picture) -> int:
        """In pixels."""
        return item.size[0] * item.size[1]

    def together(self, one: Picture, other: Picture) -> bool:
        """Pictures of one size."""
        return one.size == other.size

    def rejected(self, item: Picture, unfit: Unfit) -> Made:
        """No latents."""
        return Made(rejected={LATENTS: [_rejected(item, unfit)]})

    def name(self, item: Picture) -> str:
        """The file's."""
        return str(self._folders[item.dataset] / item.path)

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
    """The VAE as the engine drives it: pictures travel as bytes, a quarter of their floats."""

    def __init__(self, encoder: LatentEncoder) -> None:
        self._encoder = encoder
        self._signed = signed_values().to(self.device)

    @property
    def device(self) -> torch.device:
        return torch.device(self._encoder.vae.device)

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[Made]:
        """The latents of each picture; those that are NaN or infinite are rejected, no others."""
        values = torch.from_numpy(np.stack([one.values for one in read])).to(self.device)
        latents = self._encoder.encode(self._signed[values.long()].permute(0, 3, 1, 2))
        return [_made(*three) for three in zip(items, read, latents, strict=True)]


def signed_values() -> Float[Tensor, " 256"]:
    """What `images.pixels` makes of each value of a byte: the same bits on every device."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGB")
    return torch.from_numpy(pixels(ramp)[0, 0])


def _made(item: Picture, read: Decoded, latent: Tensor) -> Made:
    shown = {SHOWN: read.shown} if read.shown else {}
    if bool(torch.isfinite(latent).all()):
        return Made(rows={LATENTS: {item.latent_key: bits_of(latent)}, **shown})
    unfit = Unfit(
        "nan_latents", 'the VAE gives NaN or infinite values (`vae_dtype: "fp32"` is safe)'
    )
    return Made(rows=shown, rejected={LATENTS: [_rejected(item, unfit)]})


def _rejected(item: Picture, unfit: Unfit) -> RejectedRow:
    return RejectedRow(item.latent_key, STAGE, item.dataset, item.path, unfit.reason, unfit.detail)
