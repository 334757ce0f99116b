"""The objective: rectified flow matching (arXiv 2209.03003; 2403.03206, section 2).

With clean target latents x, noise n ~ N(0, 1) and a noise level sigma in (0, 1):

    state      z = (1 - sigma) * x + sigma * n
    velocity   v = n - x                              what the model predicts from z, sigma, text
    loss       L = mean(l(v_predicted - v))           over the target's numbers alone

where l is d^2, or a pseudo-Huber function of the difference d. With a mask of weights w it is
L = sum(w * l) / sum(w). Every sample of a step weighs the same. References are clean; their
tokens have no loss. How sigma is drawn stands in data/sigmas.py.
"""

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
    """Return the state at `sigma`: (1 - sigma) * clean + sigma * noise."""
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
    """Return the mean error of each sample over its target, in float32.

    With d = predicted - velocity: `l2` is d²; `huber` is 2c(√(d²+c²) - c), which is d² for
    small d and 2c|d| for large; `smooth_l1` is 2(√(d²+c²) - c). The last two are the
    pseudo-Huber losses of diffusers' training scripts (`train_text_to_image.py` and its kin).

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
