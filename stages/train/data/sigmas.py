"""Which noise level (sigma) a sample is trained at: its distribution, and the shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Distribution = Literal["sigmoid", "uniform", "beta"]

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
