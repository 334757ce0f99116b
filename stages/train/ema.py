"""The exponential moving average of the trained weights, in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """A float32 shadow of the trained weights.

    The decay warms up: at step s it is min(decay, (1 + k) / (10 + k)) with k = s - 1. A shadow
    in bfloat16 would lose most updates at a decay of 0.995.

    Args:
        weights: name -> parameter; the shadow starts as a copy of them.
        every_steps: the shadow moves at every so many steps.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        decay: float,
        device: str = "cpu",
        every_steps: int = 1,
    ) -> None:
        self.decay, self.every_steps = decay, every_steps
        self.shadow = {
            name: weight.detach().to(device, torch.float32, copy=True)
            for name, weight in weights.items()
        }

    @torch.no_grad()
    def follow(self, weights: Mapping[str, Tensor], *, step: int) -> None:
        """Move the shadow towards `weights` as they are after `step` (from 1)."""
        if step % self.every_steps:
            return
        decay = min(self.decay, step / (9 + step))
        for name, shadow in self.shadow.items():
            shadow.lerp_(weights[name].detach().to(shadow.device, torch.float32), 1 - decay)
