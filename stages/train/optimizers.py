"""The optimizer, and its state as tensors by name: nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...cache.errors import WrongUse


def make_optimizer(
    weights: Mapping[str, nn.Parameter],
    *,
    learning_rate: float,
    config: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """AdamW over `weights`, in their order; `config` holds further arguments of torch's class.

    Raises:
        WrongUse: `config` has an argument that AdamW does not take, or a value it refuses.
    """
    try:
        return torch.optim.AdamW(list(weights.values()), lr=learning_rate, **dict(config or {}))
    except (TypeError, ValueError) as error:
        raise WrongUse(
            f"`optimizer_config` does not fit AdamW: {error}.",
            "It takes the arguments of torch.optim.AdamW, such as betas, eps and weight_decay.",
        ) from error


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as `<what>:<name of the weight>`, as in `exp_avg:….lora_A.weight`."""
    return {
        f"{what}:{name}": value.detach().cpu()
        for name, weight in weights.items()
        for what, value in optimizer.state.get(weight, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave, to the bit."""
    places = {name: place for place, name in enumerate(weights)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        what, _, name = key.partition(":")
        state.setdefault(places[name], {})[what] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
