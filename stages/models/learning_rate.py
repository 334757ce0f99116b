"""Learning rate schedules: those of diffusers, as plain functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...cache.errors import WrongUse
from ...config.schedules import SCHEDULE_OPTIONS, schedule_mistakes

# diffusers has no warm-up for these.
_COLD = ("constant", "piecewise_constant")


def learning_rate_schedule(
    name: str,
    peak: float,
    *,
    steps: int,
    warmup_steps: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Callable[[int], float]:
    """Return the learning rate of each step (from 1), by diffusers' schedules.

    As there, a warm-up begins at zero. Those that have none there have one here.

    Args:
        steps: the last step, where a decaying schedule ends.
        config: the options that the schedule takes, see `SCHEDULE_OPTIONS`.

    Raises:
        WrongUse: no such schedule, or an option that it does not take or cannot use.
    """
    if name not in SCHEDULE_OPTIONS:
        raise WrongUse(
            f"There is no `lr_scheduler` {name}.", f"Choose one of {', '.join(SCHEDULE_OPTIONS)}."
        )
    for option, why in schedule_mistakes(name, config or {}, peak=peak):
        raise WrongUse(f"`lr_scheduler_config.{option}` {why}.", "Fix it, or remove it.")
    factor = _factors(name, peak, steps=steps, warmup_steps=warmup_steps, options=config or {})

    def rate(step: int) -> float:
        warmth = min(1.0, (step - 1) / warmup_steps) if name in _COLD and warmup_steps else 1.0
        return peak * warmth * float(factor(step - 1))

    return rate


def _factors(
    name: str, peak: float, *, steps: int, warmup_steps: int, options: Mapping[str, Any]
) -> Callable[[int], float]:
    """Return the factor on the highest rate as a function of the step (from 0)."""
    from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler

    # the schedules want an optimizer to drive; only their factor is used
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    of_run = {"num_warmup_steps": warmup_steps, "num_training_steps": steps, **options}
    if name == "polynomial":  # `get_scheduler` does not hand its end on
        schedule = get_polynomial_decay_schedule_with_warmup(optimizer, **of_run)
    else:
        schedule = get_scheduler(name, optimizer, **of_run)
    factors: Callable[[int], float] = schedule.lr_lambdas[0]
    return factors
