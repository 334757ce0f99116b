"""Pictures to normalised latents and back, as diffusers' edit pipelines do it."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from .checkpoint import Checkpoint
from .loading import load_part


class LatentEncoder:
    """The VAE of a checkpoint: the mode of the posterior, normalised per channel in float32.

    Nothing is sampled, tiled or sliced, so a picture has one latent.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.vae.disable_tiling()
        self.vae.disable_slicing()
        self._mean = self._per_channel(vae.config.latents_mean)
        self._std = self._per_channel(vae.config.latents_std)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load the VAE of `checkpoint`; float32 unless told otherwise (bfloat16 costs 1 %)."""
        from diffusers import AutoencoderKLQwenImage

        return cls(load_part(AutoencoderKLQwenImage, checkpoint.vae, dtype=dtype, device=device))

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel latent_height latent_width"]:
        """Pixels in [-1, 1] to (mode - mean) / std, in float32 on the CPU, an eighth as large.

        Formula: `QwenImageEditPipeline._encode_vae_image`, there with "argmax".
        """
        frames = pixels.to(self.vae.device, self.vae.dtype).unsqueeze(2)
        mode: Tensor = self.vae.encode(frames).latent_dist.mode()
        return ((mode.squeeze(2).float() - self._mean) / self._std).cpu()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch channel latent_height latent_width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Normalised latents to pixels in [-1, 1], in float32 on the CPU."""
        latents = latents.to(self.vae.device, torch.float32) * self._std + self._mean
        frames = latents.to(self.vae.dtype).unsqueeze(2)
        pixels: Tensor = self.vae.decode(frames).sample
        return pixels.squeeze(2).float().cpu()

    def _per_channel(self, values: list[float]) -> Tensor:
        return torch.tensor(values, device=self.vae.device).view(1, -1, 1, 1)
