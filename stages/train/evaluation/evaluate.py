"""The held-out loss: the same number for the same weights, with any number of processes.

Each sample is measured alone, at every sigma of a fixed grid, with noise that belongs to the
sample. The mean over the grid is the loss: it does not depend on how training draws sigmas.
Samples have the geometry of their pairs table, which crops no held-out picture; previews alone
have rows of whole references where training crops them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....cache.files.fingerprint import fingerprint
from ..data.feed import Feed
from ..objective.eval_mode import eval_mode
from ..objective.step import Objective
from ..plan.training_plan import Plan
from ..ranks import ALONE, Ranks
from ..state.run_record import identity

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class HeldOut:
    """Measures the held-out loss.

    Attributes:
        feed: step n of it is the n-th held-out sample, alone, with its noise and caption.
        count: how many samples are measured.
    """

    feed: Feed
    count: int
    objective: Objective
    ranks: Ranks = ALONE

    def measure(self, transformer: nn.Module) -> dict[str, Any]:
        """Return the mean loss over all held-out samples: `loss`, and `by_sigma` for each sigma.

        Without gradients and without dropout; nothing that training draws is touched. A loss
        that is not finite is None.
        """
        with eval_mode(transformer):
            losses = self.ranks.gathered(self._own_losses(transformer).tolist())
        every = torch.tensor(losses, dtype=torch.float64).sum(0)
        by_sigma = {
            f"{sigma:g}": _number(float(column.mean()))
            for sigma, column in zip(SIGMAS, every.T, strict=True)
        }
        return {"loss": _number(float(every.mean())), "by_sigma": by_sigma}

    def _own_losses(self, transformer: nn.Module) -> Float[Tensor, "sample sigma"]:
        """Return the losses of this process's samples; those of the others are zero."""
        losses = torch.zeros(self.count, len(SIGMAS), dtype=torch.float64)
        for place in range(self.ranks.rank, self.count, self.ranks.world):
            (batch,) = self.feed.step(place + 1)
            for column, sigma in enumerate(SIGMAS):
                at_sigma = replace(batch, sigma=torch.tensor([sigma]))
                losses[place, column] = self.objective.losses(transformer, at_sigma)[0]
        return losses

    @property
    def name(self) -> str:
        """Return a name: losses of the same name can be compared."""
        samples = [self.feed.order.step(place + 1)[0][0] for place in range(self.count)]
        how = {"seed": self.feed.seed, "sigmas": SIGMAS, "loss": self.objective.loss_type}
        return fingerprint({**how, "samples": [identity(sample) for sample in samples]})


def held_out_of(plan: Plan, objective: Objective, ranks: Ranks = ALONE) -> HeldOut | None:
    """Return what measures the run `plan`; None where it has no held-out pairs."""
    if plan.held_out is None:
        return None
    return HeldOut(plan.held_out, plan.held_out_count, objective, ranks)


def _number(value: float) -> float | None:
    """Return `value`, or None for a NaN or infinity, which JSON cannot hold."""
    return value if math.isfinite(value) else None
