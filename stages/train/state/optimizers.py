"""Optimizers by name, and their state as tensors by name: nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ....cache.errors import WrongUse
from ....config.settings import Settings


@dataclass(frozen=True)
class Kind:
    """Names an optimizer's class and the package that has it."""

    module: str
    name: str
    package: str

    @property
    def install(self) -> str:
        """Return what to give to pip: other people's packages are an extra of qedit."""
        return f"'{self.package}'" if self.module.startswith("torch") else "'qedit[optimizers]'"


KINDS = {
    "adamw": Kind("torch.optim", "AdamW", "torch"),
    "adafactor": Kind("torch.optim", "Adafactor", "torch"),
    "muon": Kind("torch.optim", "Muon", "torch>=2.9"),
    "adamw-8bit": Kind("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "prodigy": Kind("prodigyopt", "Prodigy", "prodigyopt"),
    "lion": Kind("lion_pytorch", "Lion", "lion-pytorch"),
    "came": Kind("came_pytorch", "CAME", "came-pytorch"),
}
# What a checkpoint calls a number of an optimizer's group, as Prodigy's estimate `d`.
_GROUP = "group"
# What such classes raise for a value that they cannot use; CAME and Lion assert.
_UNFIT = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
# These decide in `optimizer_config` how AdamW is computed.
_HOW = {"fused", "foreach", "differentiable"}


def optimizer_class(name: str) -> Any:
    """Return the class of the optimizer called `name` in the settings.

    Raises:
        WrongUse: its package is not installed; says what to type.
    """
    kind = KINDS[name]
    try:
        return getattr(import_module(kind.module), kind.name)
    except (ImportError, AttributeError) as error:
        raise WrongUse(
            f"`optimizer` {name} needs the package {kind.package}, which is not installed "
            f"({error}).",
            f"Type `pip install {kind.install}`, or choose another `optimizer`.",
        ) from error


def refuse_optimizer(settings: Settings) -> None:
    """Raise if `optimizer` and `optimizer_config` cannot be, before there is a model to train.

    Raises:
        WrongUse: a package is missing, or an option does not fit.
    """
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    config = dict(settings.optimizer_config or {})
    config.pop("capturable", None)  # for GPUs alone, and this weight is on the CPU
    optimizer = make_optimizer(
        {"any": weight},
        learning_rate=settings.learning_rate,
        name=settings.optimizer,
        config=config,
    )
    if KINDS[settings.optimizer].package == "bitsandbytes":
        return  # it checks its values at once, and not every version steps on a CPU
    try:
        optimizer.step()
    except _UNFIT as error:
        _refuse_unfit(KINDS[settings.optimizer], error)


def make_optimizer(
    weights: Mapping[str, nn.Parameter],
    *,
    learning_rate: float,
    name: str = "adamw",
    config: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer `name` over `weights`, in their order.

    AdamW is fused where torch can. Muon takes matrices alone, which a LoRA's weights are.

    Args:
        config: further arguments of the optimizer's class.

    Raises:
        WrongUse: `config` has an argument that the class does not take, or a value it refuses.
    """
    kind, options = KINDS[name], dict(config or {})
    if name == "adamw" and not _HOW & options.keys():
        devices = {weight.device.type for weight in weights.values()}
        options["fused"] = devices <= {"cpu", "cuda"}
    made = optimizer_class(name)
    try:
        optimizer: torch.optim.Optimizer = made(list(weights.values()), lr=learning_rate, **options)
    except _UNFIT as error:
        _refuse_unfit(kind, error)
    optimizer.register_step_post_hook(_raise_versions)
    return optimizer


def _refuse_unfit(kind: Kind, error: Exception) -> NoReturn:
    reason = str(error).rstrip(".") or "a value is out of its bounds"
    raise WrongUse(
        f"`optimizer_config` does not fit {kind.name}: {reason}.",
        f"It takes the arguments of {kind.module}.{kind.name}, such as betas or weight_decay.",
    ) from error


def _raise_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Raise the version of every weight after a fused step, which does not do it itself.

    Code that caches what follows from the weights goes by these versions. It cannot go by
    gradients: what changed the weights may be the gradient of another process alone.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            torch.autograd.graph.increment_version(weight)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the state as `<what>:<name of the weight>`, as in `exp_avg:….lora_A.weight`.

    Tensors are the optimizer's own, where they are.

    Numbers are 0-d tensors of 64 bits under `<what>#:<name>`; those that an optimizer keeps
    beside the weights are `<what>#:group`.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for what, value in optimizer.state.get(weight, {}).items():
            tensors |= _entry(what, name, value)
    (group,) = optimizer.param_groups
    for what, value in group.items():
        # the rest of the group is what the settings say
        if isinstance(value, (int, float)) and not isinstance(value, bool) and what != "lr":
            tensors |= _entry(what, _GROUP, value)
    return tensors


def _entry(what: str, name: str, value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        # what weights share (8-bit optimizers: a table of levels) is named for each of them
        return {f"{what}:{name}": value.detach()}
    if value is None:
        return {}
    kind = torch.int64 if isinstance(value, int) else torch.float64
    return {f"{what}#:{name}": torch.tensor(value, dtype=kind)}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Restore what `optimizer_tensors` returned, bit for bit."""
    places = {name: place for place, name in enumerate(weights)}
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, tensor in tensors.items():
        what, _, name = key.partition(":")
        value = tensor.item() if what.endswith("#") else tensor
        what = what.removesuffix("#")
        if name == _GROUP:
            groups[0][what] = value
        else:
            state.setdefault(places[name], {})[what] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
