"""Tiny checkpoints for tests of the models, and how far two tensors are apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from qedit.stages.models.checkpoint.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class ModelSettings:
    """The settings that say which model it is, and in which precision it encodes."""

    model_flavour: str | None = "edit-v2"
    pretrained_model_name_or_path: str | None = None
    revision: str | None = None
    pretrained_transformer_model_name_or_path: str | None = None
    pretrained_vae_model_name_or_path: str | None = None
    pretrained_text_encoder_model_name_or_path: str | None = None
    vae_dtype: str = "fp32"
    text_encoder_dtype: str = "bf16"
    text_encoder_precision: str = "no_change"


def opened(folder: Path, flavour: str = "edit-v2") -> Checkpoint:
    """The checkpoint of `flavour` that lies in `folder`."""
    return open_checkpoint(ModelSettings(flavour, str(folder)))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def relative(found: Tensor, true: Tensor) -> float:
    """The norm of the difference, relative to the norm of the true values."""
    return float((found.float() - true.float()).norm() / true.float().norm())
