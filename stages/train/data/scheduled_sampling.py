"""Scheduled sampling: the draw of the samples that are rolled out before training, and how far.

`objective/rollout.py` says what a rollout is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from ....config.settings import Settings
from ...models.transformer.transformer import TIMESTEPS

Strategy = Literal["uniform", "biased_early", "biased_late"]
Sampler = Literal["unipc", "euler", "dpm"]


@dataclass(frozen=True)
class Reflex:
    """The weights of ReflexFlow's parts; `objective/rollout.py` has the formula."""

    alpha: float = 1.0
    beta1: float = 10.0
    beta2: float = 1.0


@dataclass(frozen=True)
class Rollouts:
    """The settings of rollouts: how often samples are rolled out, how far, and by which solver.

    Attributes:
        max_step_offset: most steps, of 1/1000 each, that a rollout may have.
        probability: of a sample to be rolled out, where there is no ramp.
        prob_start, prob_end, ramp_steps, ramp_shape: it goes from one to the other within so
            many training steps; 0 of them is no ramp.
        start_step: the training step it begins at.
    """

    max_step_offset: int
    strategy: Strategy = "uniform"
    probability: float = 0.0
    prob_start: float = 0.0
    prob_end: float = 0.5
    ramp_steps: int = 0
    start_step: int = 0
    ramp_shape: Literal["linear", "cosine"] = "linear"
    sampler: Sampler = "unipc"
    order: int = 2
    reflex: Reflex | None = None

    def chance(self, step: int) -> float:
        """Return the probability of a sample of training step `step` to be rolled out."""
        if step < self.start_step:
            return 0.0
        if not self.ramp_steps:
            return self.probability
        progress = min(1.0, (step - self.start_step) / self.ramp_steps)
        if self.ramp_shape == "cosine":
            progress = 0.5 - 0.5 * math.cos(math.pi * progress)
        return self.prob_start + (self.prob_end - self.prob_start) * progress

    def draw(self, random: np.random.Generator, *, step: int, sigma: float) -> int:
        """Draw by how many steps a sample at `sigma` is rolled out; 0 leaves it as it is.

        The start is never beyond the last of the 1000 steps.

        Args:
            sigma: as the sample has it in the end, rounded to float32.
        """
        chance, share = random.random(2).tolist()
        if chance >= self.chance(step):
            return 0
        at = math.floor(sigma * TIMESTEPS)
        return max(0, min(at + self._offset(share), TIMESTEPS - 1) - at)

    def _offset(self, share: float) -> int:
        if self.strategy == "uniform":
            return math.floor(share * (self.max_step_offset + 1))
        early = self.strategy == "biased_early"
        return round((share**2 if early else 1 - share**2) * self.max_step_offset)


def rollouts_of(settings: Settings) -> Rollouts | None:
    """Return what the settings ask for; None where nothing is ever rolled out."""
    reflex = None
    if settings.scheduled_sampling_reflexflow:
        reflex = Reflex(**_keys_of(Reflex, settings, "scheduled_sampling_reflexflow_"))
    keys = _keys_of(Rollouts, settings, "scheduled_sampling_")
    rollouts = Rollouts(**{**keys, "reflex": reflex})
    ramp = max(rollouts.prob_start, rollouts.prob_end)
    happens = ramp if rollouts.ramp_steps else rollouts.probability
    return rollouts if rollouts.max_step_offset and happens else None


def _keys_of(kind: type[Rollouts | Reflex], settings: Settings, prefix: str) -> dict[str, Any]:
    """Return the settings that are called as the fields of `kind`, after `prefix`."""
    keys = ((field.name, prefix + field.name) for field in fields(kind))
    return {name: getattr(settings, key) for name, key in keys if hasattr(settings, key)}
