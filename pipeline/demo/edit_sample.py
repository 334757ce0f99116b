"""The model's own edit of a cached sample: denoised from its references, decoded to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ...config.configuration import Configuration
from ...stages.models.device import best_device
from ...stages.models.transformer.denoise import denoise, load_scheduler
from ...stages.models.transformer.transformer import load_transformer
from ...stages.models.vae import LatentEncoder
from ...stages.pictures.images import open_upright, picture_of, resized
from ...stages.samples.sample import NULL_CAPTION, Picture, Sample
from ...stages.samples.table import picture_folders
from ...stages.stores.run import Run
from ...stages.stores.sample_rows import read_embeds, read_latents


class Editor:
    """The transformer and the VAE on one device, and the caches they read from."""

    def __init__(self, configuration: Configuration, *, device: str = "auto") -> None:
        run = Run(configuration)
        self._checkpoint, self._stores = run.checkpoint, run.stores
        self._folders = picture_folders(configuration)
        self._device = best_device(device)
        self._vae = LatentEncoder.load(self._checkpoint, device=self._device)
        self._transformer = load_transformer(
            self._checkpoint, dtype=torch.float32, device=self._device
        )

    def use_lora(self, path: Path) -> None:
        """Put the LoRA file at `path` over the base, as diffusers' own loader does."""
        cast(Any, self._transformer).load_lora_adapter(load_file(path), prefix="transformer")

    def edit(
        self, sample: Sample, *, steps: int, guidance: float, seed: int, caption: int = 0
    ) -> Image.Image:
        """What the model makes of the sample's references and caption, from fixed noise."""
        shape = self._stores.latents.shape(sample.target.latent_key, dataset=sample.target.dataset)
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        latents = denoise(
            self._transformer,
            load_scheduler(self._checkpoint.scheduler),
            noise.to(self._device),
            [
                self._on_device(read_latents(self._stores, [reference]))
                for reference in sample.references
            ],
            self._embeds(sample, sample.captions[caption]),
            self._embeds(sample, NULL_CAPTION),
            steps=steps,
            guidance=guidance,
        )
        return picture_of(self._vae.decode(latents)[0].cpu().numpy())

    def pictures(self, sample: Sample) -> tuple[list[Image.Image], Image.Image]:
        """The references and the target at the sizes the VAE sees."""
        return (
            [self._picture(reference) for reference in sample.references],
            self._picture(sample.target),
        )

    def _picture(self, picture: Picture) -> Image.Image:
        opened = open_upright(self._folders[picture.dataset] / picture.path)
        return resized(opened, picture.box, picture.size)

    def _embeds(self, sample: Sample, caption: str) -> Float[Tensor, "1 token channel"]:
        return self._on_device(read_embeds(self._stores, [sample], [caption])[0])

    def _on_device(self, rows: Tensor) -> Tensor:
        return rows.to(self._device, torch.float32)
