"""LoRA on the transformer: the choice of layers and the initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....cache.errors import WrongUse
from ..layers import chosen_layers
from .lora_file import Lora, lora_scale

_ADAPTER = "default"
# These take their start out of the base, so that the two together are the base again.
CHANGES_BASE = ("pissa", "olora")


def target_modules(transformer: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the full names of the linear layers that `wanted` selects, in the model's order.

    Args:
        wanted: as `chosen_layers` takes it.

    Raises:
        WrongUse: a name that fits no layer which can learn.
    """
    modules = transformer.named_modules()
    linears = [name for name, module in modules if isinstance(module, nn.Linear)]
    return chosen_layers(linears, wanted)


def add_lora(
    transformer: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    init: str = "default",
    kind: str = "lora",
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Freeze `transformer` and put an adapter of float32 weights on the layers `targets`.

    The same seed gives the same weights; a fresh adapter changes no output. Returns the weights
    by name, as in `transformer_blocks.0.attn.to_q.lora_A.weight`.

    Args:
        alpha: the adapter's output is scaled by alpha / rank.
        init: `default` (Kaiming uniform), `gaussian`, or one of `CHANGES_BASE`.
        kind: `lora`, `dora` (with a trained norm for each output) or `lokr` (a Kronecker
            product; it begins in PEFT's own way and has no dropout).

    Raises:
        WrongUse: a DoRA's start is to be a part of rows of zeros.
    """
    transformer.requires_grad_(False)
    config = _config(targets, rank=rank, alpha=alpha, dropout=dropout, init=init, kind=kind)
    whole = {
        name: transformer.get_parameter(f"{name}.weight").detach().to("cpu", copy=True)
        for name in targets
        if init in CHANGES_BASE
    }
    if kind == "dora":
        _refuse_rows_of_zeros(whole, init=init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=_ADAPTER)  # type: ignore[operator]
        if kind == "dora":
            _give_directions(transformer, targets)
    weights = _lora_weights(transformer)
    # PEFT takes out what it has not yet rounded to the base's dtype: take out what is there
    for name, weight in whole.items():
        transformer.get_parameter(f"{name}.base_layer.weight").data.copy_(weight)
    if whole:
        take_out_of_base(transformer, weights, scale=lora_scale(alpha=alpha, rank=rank))
    return weights


def _refuse_rows_of_zeros(whole: Mapping[str, Tensor], *, init: str) -> None:
    """Raise if an initialisation leaves rows of zeros, which have no direction for a DoRA."""
    for name, weight in whole.items():
        if bool((weight == 0).all(dim=1).any()):
            raise WrongUse(
                f"`lora_init_type` {init} begins as a part of the base, and {name} has rows of "
                "zeros, which `lora_type` dora gives no direction so.",
                "Set `lora_init_type` to default, or `lora_type` to lora.",
            )


@torch.no_grad()
def _give_directions(transformer: nn.Module, targets: Sequence[str]) -> None:
    """Give a DoRA's rows of zeros a direction, with magnitude zero.

    Everybody who computes with a DoRA divides by the norms of its rows. Such a row stays zero
    in what the layer gives, and can learn.
    """
    for name in targets:
        layer: Any = transformer.get_submodule(name)
        empty = layer.base_layer.weight.float().norm(dim=1) == 0
        if bool(empty.any()):
            up = layer.lora_B[_ADAPTER].weight
            drawn = torch.randn(int(empty.sum()), up.shape[1])
            up[empty] = drawn.to(up.device, up.dtype)


def _config(
    targets: Sequence[str], *, rank: int, alpha: float, dropout: float, init: str, kind: str
) -> Any:
    from peft import LoKrConfig, LoraConfig

    options: dict[str, Any] = {"r": rank, "target_modules": list(targets)}
    if kind == "lokr":
        assert (dropout, init) == (0, "default"), "the settings are refused otherwise"
        return LoKrConfig(**(options | {"alpha": alpha}))
    options |= {
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "init_lora_weights": True if init == "default" else init,
    }
    return LoraConfig(**options, use_dora=kind == "dora")


@torch.no_grad()
def take_out_of_base(transformer: nn.Module, starts: Mapping[str, Tensor], *, scale: float) -> None:
    """Take the LoRA `starts`, named as `add_lora` names weights, out of the layers it is on."""
    for layer in (name.removesuffix(_DOWN) for name in starts if name.endswith(_DOWN)):
        base = transformer.get_submodule(layer).get_submodule("base_layer")
        weight = base.get_parameter("weight")
        down, up = (starts[layer + end].to(weight.device) for end in (_DOWN, _UP))
        weight.data = (weight.data.float() - scale * (up @ down)).to(weight.dtype)


_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def _lora_weights(transformer: nn.Module) -> dict[str, nn.Parameter]:
    weights = {}
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            # a bfloat16 weight would lose most updates at usual learning rates
            parameter.data = parameter.data.float()
            weights[name.replace(f".{_ADAPTER}.", ".").removesuffix(f".{_ADAPTER}")] = parameter
    return weights


@torch.no_grad()
def start_from(
    weights: Mapping[str, nn.Parameter], lora: Lora, *, rank: int, alpha: float, source: str
) -> None:
    """Initialise `weights` with `lora`, to the same effect; layers it lacks stay fresh.

    Where it is of a lower rank, the rest of a layer begins fresh and adds nothing.

    Raises:
        WrongUse: it has layers that are not trained here, or of other sizes.
    """
    names = [name.removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)]
    layers = {
        name: (weights[name + _DOWN].shape[1], weights[name + _UP].shape[0]) for name in names
    }
    refuse_other_layers(lora, layers, rank=rank, source=source)
    scale = lora_scale(alpha=alpha, rank=rank)
    for layer, start in lora.layers.items():
        weights[layer + _DOWN][: start.rank].copy_(start.down)
        up = weights[layer + _UP]
        # the scale of this run is applied in every forward, that of the file must go in here
        up.zero_()[:, : start.rank].copy_(start.up.float() * (start.scale / scale))


def refuse_other_layers(
    lora: Lora, layers: Mapping[str, tuple[int, int]], *, rank: int, source: str
) -> None:
    """Raise unless a LoRA of `rank` on `layers` can be initialised with `lora`.

    Args:
        layers: inputs and outputs of each layer that is trained, by name.

    Raises:
        WrongUse: it has another layer, or one of another size.
    """
    for layer, start in sorted(lora.layers.items()):
        if layer not in layers:
            raise WrongUse(
                f"`init_lora`: {source} has {layer}, which is not among the {len(layers)} "
                f"layers trained here (such as {min(layers)}).",
                "Set `lora_target_modules` to what that LoRA was trained with.",
            )
        (ins, outs), used = layers[layer], min(start.rank, rank)
        for name, value, here in (
            (layer + _DOWN, start.down, [used, ins]),
            (layer + _UP, start.up, [outs, used]),
        ):
            if list(value.shape) != here:
                raise WrongUse(
                    f"`init_lora`: {name} is {list(value.shape)} in {source} and {here} here.",
                    "Give a LoRA of this model.",
                )
