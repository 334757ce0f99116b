"""The noise level (sigma) that a sample is trained at: its distribution, and the shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...models.timesteps import shift_exponent

Distribution = Literal["sigmoid", "uniform", "beta"]

MOST_EXPONENT = 700.0  # e to the power of more is no float


@dataclass(frozen=True)
class Sigmas:
    """Draws the noise level of a sample: from a distribution, then shifted.

    Attributes:
        distribution: `sigmoid` of a scaled normal number, `uniform` in (0, 1), or `beta`.
        scale: multiplies the normal number of `sigmoid`.
        alpha, beta: the two parameters of `beta`.
        shift: a fixed shift; 1 leaves sigmas as they are drawn.
        scheduler: the checkpoint's scheduler config, where the shift is the one that inference
            uses and grows with the target; then `shift` is not looked at.
    """

    distribution: Distribution = "sigmoid"
    scale: float = 1.0
    alpha: float = 2.0
    beta: float = 2.0
    shift: float = 1.0
    scheduler: Mapping[str, Any] | None = None

    def draw(self, random: np.random.Generator, *, target_tokens: int) -> float:
        """Return one sigma in (0, 1) for a target of so many tokens."""
        shift = self.shift
        if self.scheduler is not None:
            shift = math.exp(shift_exponent(self.scheduler, target_tokens))
        return shifted(self._unshifted(random), shift)

    def _unshifted(self, random: np.random.Generator) -> float:
        if self.distribution == "uniform":
            return float(random.random())
        if self.distribution == "beta":
            return float(random.beta(self.alpha, self.beta))
        power = -self.scale * float(random.standard_normal())
        return 1 / (1 + math.exp(min(power, MOST_EXPONENT)))


def shifted(sigma: float, shift: float) -> float:
    """Return `sigma` moved towards noise (shift > 1): s*sigma / (1 + (s-1)*sigma).

    This is the time shift of Stable Diffusion 3 (arXiv 2403.03206, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)
