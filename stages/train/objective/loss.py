"""The objective of flow matching: how noise is mixed in, and how an error is measured."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LossType = Literal["l2", "huber", "smooth_l1"]


def noised(
    clean: Float[Tensor, "batch channel height width"],
    noise: Float[Tensor, "batch channel height width"],
    sigma: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channel height width"]:
    """The straight path from picture to noise at `sigma`: (1 - sigma)*clean + sigma*noise."""
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * clean + level * noise


def sample_losses(
    predicted: Float[Tensor, "batch channel height width"],
    velocity: Float[Tensor, "batch channel height width"],
    *,
    loss_type: LossType = "l2",
    huber_c: float = 0.1,
    weights: Float[Tensor, "batch 1 height width"] | None = None,
    factors: Float[Tensor, "batch channel height width"] | None = None,
) -> Float[Tensor, " batch"]:
    """The mean error of each sample over its target, in float32.

    With d = predicted - velocity: `l2` is d²; `huber` is 2c(√(d²+c²) - c), which is d² for
    small d and 2c|d| for large; `smooth_l1` is 2(√(d²+c²) - c). The last two are the
    pseudo-Huber losses of diffusers' training scripts.

    Args:
        weights: where the error counts, and how much: the mean is sum(w * l) / sum(w).
        factors: multiply the pointwise errors before that, and nothing else.
    """
    error = predicted.float() - velocity.float()
    if loss_type == "l2":
        pointwise = error.square()
    else:
        pointwise = 2 * (torch.sqrt(error.square() + huber_c**2) - huber_c)
        if loss_type == "huber":
            pointwise = huber_c * pointwise
    if factors is not None:
        pointwise = factors * pointwise
    if weights is None:
        return pointwise.flatten(1).mean(1)
    weighted = (weights * pointwise).flatten(1).sum(1)
    return weighted / (weights.flatten(1).sum(1) * pointwise.shape[1])
