"""Latents and their decoding are those of diffusers' VAE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from tiny_checkpoints import difference, relative

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.vae import LatentEncoder


@pytest.fixture(scope="module")
def stock_vae(checkpoint: Checkpoint) -> Any:
    return AutoencoderKLQwenImage.from_pretrained(str(checkpoint.vae)).eval()


def test_latents_are_the_normalised_mode(checkpoint: Checkpoint, stock_vae: Any) -> None:
    # larger than a tile of the VAE, so that tiling would show
    pixels = torch.rand(2, 3, 64, 320, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = stock_vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
    mean, std = (
        torch.tensor(values).view(1, 16, 1, 1)
        for values in (stock_vae.config.latents_mean, stock_vae.config.latents_std)
    )
    latents = LatentEncoder.load(checkpoint).encode(pixels)
    assert latents.shape == (2, 16, 8, 40)
    # two-dimensional convolutions do the work of the causal ones, to rounding
    assert relative(latents, (mode.squeeze(2) - mean) / std) < 1e-6


@pytest.fixture(scope="module")
def steep_vae(checkpoint: Checkpoint) -> LatentEncoder:
    """With an attention that is far from flat."""
    encoder = LatentEncoder.load(checkpoint)
    with torch.no_grad():
        for name, parameter in encoder.vae.named_parameters():
            if "to_qkv" in name:
                parameter[: 2 * len(parameter) // 3] *= 4  # queries and keys
    return encoder


def test_a_batch_of_pictures_gives_what_each_gives_alone(steep_vae: LatentEncoder) -> None:
    for height, width in ((64, 96), (160, 32), (32, 32)):
        generator = torch.Generator().manual_seed(height)
        pixels = torch.rand(5, 3, height, width, generator=generator) * 2 - 1
        batch = steep_vae.encode(pixels)
        for latents, picture_alone in zip(batch, pixels, strict=True):
            assert difference(latents, steep_vae.encode(picture_alone[None])[0]) < 1e-5
        again = steep_vae.encode(torch.cat([pixels[:1], torch.full_like(pixels[:1], torch.nan)]))
        assert difference(again[0], batch[0]) < 1e-5


def test_decoding_undoes_the_normalisation(checkpoint: Checkpoint, stock_vae: Any) -> None:
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(values).view(1, 16, 1, 1)
        for values in (stock_vae.config.latents_mean, stock_vae.config.latents_std)
    )
    with torch.no_grad():
        expected = stock_vae.decode((latents * std + mean).unsqueeze(2)).sample.squeeze(2)
    decoded = LatentEncoder.load(checkpoint).decode(latents)
    assert decoded.shape == (1, 3, 64, 96)
    assert relative(decoded, expected) < 1e-6
