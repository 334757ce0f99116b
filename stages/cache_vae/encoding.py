"""Pictures in, latent rows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...cache.errors import QeditError
from ...config.configuration import Configuration
from ..images import pixels, resized
from ..models.checkpoint import Checkpoint
from ..models.device import best_device, dtype_named
from ..models.vae import LatentEncoder
from ..read_ahead import open_as_paired, read_ahead
from ..samples import Picture
from ..stores import picture_folders
from ..tensors import bits_of


class PictureEncoding:
    """The VAE on its device, fed with pictures that are read a few ahead of it."""

    def __init__(
        self, configuration: Configuration, checkpoint: Checkpoint, *, device: str
    ) -> None:
        self._folders = picture_folders(configuration)
        self._encoder = LatentEncoder.load(
            checkpoint,
            dtype=dtype_named(configuration.settings.vae_dtype),
            device=best_device(device),
        )

    def rows(self, pictures: Sequence[Picture], advance: Callable[[int], None]) -> list[np.ndarray]:
        """The latents of `pictures` as bfloat16 bits, each [channel, height, width].

        One picture a batch: a row does not depend on what lies beside it.

        Raises:
            QeditError: the VAE gave NaN or infinite values for a picture.
        """
        rows = []
        for picture, values in read_ahead(self._pixels, pictures):
            latent = self._encoder.encode(torch.from_numpy(values)[None])[0]
            if not bool(torch.isfinite(latent).all()):
                raise QeditError(
                    f"The VAE gives NaN or infinite latents for "
                    f"{self._folders[picture.dataset] / picture.path}.",
                    'Look at the picture; `vae_dtype: "fp32"` is the safe setting.',
                )
            rows.append(bits_of(latent))
            advance(1)
        return rows

    def _pixels(self, picture: Picture) -> np.ndarray:
        opened = open_as_paired(self._folders[picture.dataset], picture)
        return pixels(resized(opened, picture.box, picture.size))
