"""Evaluations between steps, which change nothing: the held-out loss and the previews."""

from __future__ import annotations

from collections.abc import Callable

from ...run_output.metrics_file import read_metrics
from ..metrics import Metrics, NullMetrics
from ..plan.training_plan import Plan
from ..results.best import Best
from ..results.publish import publisher_of
from ..trainer import Trainer
from .evaluate import HeldOut, held_out_of
from .previews import Previews


class Evaluations:
    """Measures the held-out loss and makes previews, where a step is due and has none yet."""

    def __init__(
        self, plan: Plan, trainer: Trainer, log: Metrics | NullMetrics, *, previews: Previews | None
    ) -> None:
        self._plan, self._trainer, self._log, self._previews = plan, trainer, log, previews
        self._held_out = held_out_of(plan, trainer.objective, trainer.ranks)
        self._best = None
        if self._held_out and plan.settings.keep_best and trainer.ranks.is_first:
            self._best = Best(publisher_of(plan), self._held_out.name)

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
