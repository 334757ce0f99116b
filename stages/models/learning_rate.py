"""Learning rate schedules: those of diffusers, as plain functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...cache.errors import WrongUse

_TAKES = ("num_cycles", "power", "step_rules")


def learning_rate_schedule(
    name: str,
    peak: float,
    *,
    steps: int,
    warmup_steps: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Callable[[int], float]:
    """The learning rate of each step (from 1), by diffusers' `get_scheduler`.

    As there, a warm-up begins at zero. `constant` with a warm-up is `constant_with_warmup`.

    Args:
        steps: the last step, where a decaying schedule ends.
        config: `num_cycles`, `power` or `step_rules`, for the schedules that take them.

    Raises:
        WrongUse: a name or a key of `config` that diffusers does not know.
    """
    from diffusers.optimization import SchedulerType, get_scheduler

    names = [kind.value for kind in SchedulerType]
    if name not in names:
        raise WrongUse(f"There is no `lr_scheduler` {name}.", f"Choose one of {', '.join(names)}.")
    for key in config or {}:
        if key not in _TAKES:
            raise WrongUse(
                f"`lr_scheduler_config` has no key {key}.", f"It has {', '.join(_TAKES)}."
            )
    if name == "constant" and warmup_steps:
        name = "constant_with_warmup"
    # the schedules want an optimizer to drive; only their factor is used
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    try:
        schedule = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=steps,
            **dict(config or {}),
        )
        factor = schedule.lr_lambdas[0]
        factor(0)  # some options are only read when a rate is asked for
    except (AttributeError, TypeError, ValueError) as error:
        raise WrongUse(
            f"lr_scheduler {name} cannot be made with lr_scheduler_config {dict(config or {})}: "
            f"{error}.",
            f"Its options are {', '.join(_TAKES)}.",
        ) from error
    return lambda step: peak * float(factor(step - 1))
