"""Pictures turned into normalised latents and back, as diffusers' edit pipelines do it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint.checkpoint import Checkpoint
from .weights.streaming import empty_part, fill, tensors_in


class LatentEncoder:
    """The VAE of a checkpoint: the mode of the posterior, normalised per channel in float32.

    Nothing is sampled, tiled or sliced, so a picture has one latent. `vae` is changed: it can
    take single frames only from here on.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        keep_last_tap(vae)
        self._mean = self._per_channel(vae.config.latents_mean)
        self._std = self._per_channel(vae.config.latents_std)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> LatentEncoder:
        """Load the VAE of `checkpoint`; float32 unless told otherwise (bfloat16 costs 1 %)."""
        from diffusers import AutoencoderKLQwenImage

        folder = checkpoint.vae
        empty = empty_part(AutoencoderKLQwenImage, folder)
        tensors = tensors_in(folder, remember=checkpoint.remember)
        return cls(fill(empty, tensors, dtype=dtype, device=device, source=folder))

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel latent_height latent_width"]:
        """Return (mode - mean) / std of pixels in [-1, 1], float32 on the CPU, an eighth as large.

        Formula: `QwenImageEditPipeline._encode_vae_image`, there with "argmax".
        """
        frames = pixels.to(self.vae.device, self.vae.dtype).unsqueeze(2)
        # mean and log variance of the posterior; its mode is the mean
        posterior: Tensor = self.vae.quant_conv(self.vae.encoder(frames)).squeeze(2)
        mode = posterior.chunk(2, dim=1)[0].float()
        return ((mode - self._mean) / self._std).cpu()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch channel latent_height latent_width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return the pixels in [-1, 1] of normalised latents, float32 on the CPU."""
        latents = latents.to(self.vae.device, torch.float32) * self._std + self._mean
        frames = latents.to(self.vae.dtype).unsqueeze(2)
        pixels: Tensor = self.vae.decoder(self.vae.post_quant_conv(frames)).squeeze(2)
        return pixels.clamp(-1.0, 1.0).float().cpu()

    def _per_channel(self, values: list[float]) -> Tensor:
        return torch.tensor(values, device=self.vae.device).view(1, -1, 1, 1)


class LastTapConvolution(nn.Module):
    """A causal 3-D convolution over a single frame, as the 2-D convolution that it is.

    The taps before the last one only ever see the zeros before the first frame.
    """

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(causal.weight[:, :, -1].contiguous(), requires_grad=False)
        self.bias = causal.bias
        self._stride = causal.stride[1:]
        left, _, top, *_ = causal._padding
        self._padding = (top, left)

    def forward(
        self, frames: Float[Tensor, "batch channel 1 height width"]
    ) -> Float[Tensor, "batch _channel 1 _height _width"]:
        convolved = functional.conv2d(
            frames.squeeze(2), self.weight, self.bias, self._stride, self._padding
        )
        return convolved.unsqueeze(2)


def keep_last_tap(model: nn.Module) -> None:
    """Replace every causal convolution of `model` by a `LastTapConvolution`.

    A third of the work and of the weights, equal to rounding. Convolutions over time with a
    stride stay: a single frame never reaches them.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QwenImageCausalConv3d) and child.stride[0] == 1:
                setattr(parent, name, LastTapConvolution(child))
