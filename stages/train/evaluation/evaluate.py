"""Evaluations between steps, which change nothing: the held-out loss and the previews.

The held-out loss is the same for the same weights, with any number of processes.

Each sample is measured alone, at every sigma of a fixed grid, with noise that belongs to the
sample. The mean over the grid is the loss: it does not depend on how training draws sigmas.
Samples have the geometry of their pairs table, which crops no held-out picture; previews alone
have rows of whole references where training crops them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....cache.files.fingerprint import fingerprint
from ...run_output.metrics_file import read_metrics
from ..data.feed import Feed
from ..metrics import Metrics, NullMetrics
from ..objective.eval_mode import eval_mode
from ..objective.step import Objective
from ..plan.training_plan import Plan
from ..ranks import ALONE, Ranks
from ..results.best import Best
from ..results.publish import Publisher
from ..state.run_record import identity
from ..trainer import Trainer
from .previews import Previews

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


class Evaluations:
    """Measures the held-out loss and makes previews, where a step is due and has none yet."""

    def __init__(
        self, plan: Plan, trainer: Trainer, log: Metrics | NullMetrics, *, previews: Previews | None
    ) -> None:
        self._plan, self._trainer, self._log, self._previews = plan, trainer, log, previews
        self._held_out = held_out_of(plan, trainer.objective, trainer.ranks)
        self._best = None
        if self._held_out and plan.settings.keep_best and trainer.ranks.is_first:
            self._best = Best(Publisher(plan), self._held_out.name)

    def at(self, step: int, *, stopping: Callable[[], bool]) -> None:
        """Make what is due at `step`; previews are left for the next start when `stopping`."""
        if self._held_out and _is_due(self._plan, step):
            owed = self._trainer.ranks.of_the_first(is_evaluation_missing(self._plan, step))
            if owed:
                self._measure(self._held_out, step)
        if self._previews and self._previews.due(step):
            self._previews.make(self._trainer, step, stopping=stopping)

    def _measure(self, held_out: HeldOut, step: int) -> None:
        found = held_out.measure(self._trainer.transformer)
        if step and self._trainer.trained.ema:
            with self._trainer.averaged():
                found["ema"] = held_out.measure(self._trainer.transformer)
        # the best first: a run killed between the two measures once more, and keeps the same
        if step and self._best:
            self._best.consider(step, found, self._trainer.trained)
        self._log.add(step=step, held_out=found)


def is_evaluation_missing(plan: Plan, step: int) -> bool:
    """Return whether a held-out loss is due at `step` and is not in the log."""
    return _is_due(plan, step) and step not in {
        line["step"] for line in read_metrics(plan.settings.output_dir, having="held_out")
    }


def _is_due(plan: Plan, step: int) -> bool:
    """Return whether the held-out loss of `step` is wanted; that of step 0 is the baseline."""
    at_interval = step % plan.settings.eval_steps_interval == 0
    return plan.held_out is not None and (at_interval or step == plan.steps)
