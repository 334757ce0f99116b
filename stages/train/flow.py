"""The objective of flow matching: which sigma, how noise is mixed in, how an error is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Distribution = Literal["sigmoid", "uniform", "beta"]
LossType = Literal["l2", "huber", "smooth_l1"]

MOST_EXPONENT = 700.0  # e to the power of more is no float


@dataclass(frozen=True)
class AutoShift:
    """The shift that inference uses: its logarithm is linear in the number of target tokens.

    The constants are the scheduler's own (`base_shift` at `base_image_seq_len` tokens,
    `max_shift` at `max_image_seq_len`).
    """

    base_shift: float = 0.5
    max_shift: float = 0.9
    base_tokens: int = 256
    max_tokens: int = 8192

    @classmethod
    def of_scheduler(cls, config: Mapping[str, Any]) -> AutoShift:
        """Read the constants from a checkpoint's scheduler config."""
        return cls(
            base_shift=config.get("base_shift", cls.base_shift),
            max_shift=config.get("max_shift", cls.max_shift),
            base_tokens=config.get("base_image_seq_len", cls.base_tokens),
            max_tokens=config.get("max_image_seq_len", cls.max_tokens),
        )

    def at(self, target_tokens: int) -> float:
        """The shift for a target of so many tokens; references do not count."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + slope * (target_tokens - self.base_tokens))


@dataclass(frozen=True)
class Sigmas:
    """How the noise level of a sample is drawn, before and after the shift.

    Attributes:
        distribution: `sigmoid` of a scaled normal number, `uniform` in (0, 1), or `beta`.
        scale: multiplies the normal number of `sigmoid`.
        alpha, beta: the two parameters of `beta`.
        shift: a fixed shift, or the rule that derives it from the target's size.
    """

    distribution: Distribution = "sigmoid"
    scale: float = 1.0
    alpha: float = 2.0
    beta: float = 2.0
    shift: float | AutoShift = 1.0

    def draw(self, random: np.random.Generator, *, target_tokens: int) -> float:
        """One sigma in (0, 1) for a target of so many tokens."""
        shift = self.shift.at(target_tokens) if isinstance(self.shift, AutoShift) else self.shift
        return shifted(self._unshifted(random), shift)

    def _unshifted(self, random: np.random.Generator) -> float:
        if self.distribution == "uniform":
            return float(random.random())
        if self.distribution == "beta":
            return float(random.beta(self.alpha, self.beta))
        power = -self.scale * float(random.standard_normal())
        return 1 / (1 + math.exp(min(power, MOST_EXPONENT)))


def shifted(sigma: float, shift: float) -> float:
    """Move `sigma` towards noise (shift > 1): s*sigma / (1 + (s-1)*sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


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
