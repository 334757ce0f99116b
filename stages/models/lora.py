"""LoRA on the transformer: which layers, and how they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ...cache.errors import WrongUse
from .layers import BLOCK_LINEARS, IDLE_IN_LAST_BLOCK, MODULATION, PRESETS, fits
from .lora_file import Lora

_ADAPTER = "default"
_INITS: dict[str, bool | str] = {
    "default": True,
    "gaussian": "gaussian",
    "pissa": "pissa",
    "olora": "olora",
}
# These take their start out of the base, so that the two together are the base again.
CHANGES_BASE = ("pissa", "olora")


def target_modules(transformer: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """The full names of the linear layers that `wanted` stands for, in the model's order.

    Args:
        wanted: a name of `PRESETS`, or names as PEFT takes them: a full name, or the end of
            one ("to_q" is that layer of every block).

    Raises:
        WrongUse: a name that fits no layer which can learn.
    """
    layers = _learning_linears(transformer)
    names = PRESETS[wanted] if isinstance(wanted, str) else tuple(wanted)
    for name in names:
        if not any(fits(layer, name) for layer in layers):
            near = get_close_matches(name, BLOCK_LINEARS + MODULATION, 1, 0.4)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise WrongUse(
                f"`lora_target_modules`: no layer of the transformer is called `{name}`.{hint}",
                f"Name a preset ({', '.join(PRESETS)}) or layers as diffusers calls them.",
            )
    return [layer for layer in layers if any(fits(layer, name) for name in names)]


def _learning_linears(transformer: nn.Module) -> list[str]:
    blocks = {name.split(".")[1] for name, _ in transformer.named_modules() if _in_block(name)}
    last = f"transformer_blocks.{len(blocks) - 1}."
    idle = {last + name for name in IDLE_IN_LAST_BLOCK}
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name not in idle
    ]


def _in_block(name: str) -> bool:
    return name.startswith("transformer_blocks.")


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
        take_out_of_base(transformer, weights, scale=alpha / rank)
    return weights


def _refuse_rows_of_zeros(whole: Mapping[str, Tensor], *, init: str) -> None:
    """A start that is a part of such a row leaves it without the direction a DoRA needs."""
    for name, weight in whole.items():
        if bool((weight == 0).all(dim=1).any()):
            raise WrongUse(
                f"`lora_init_type` {init} begins as a part of the base, and {name} has rows of "
                "zeros, which `lora_type` dora gives no direction so.",
                "Set `lora_init_type` to default, or `lora_type` to lora.",
            )


@torch.no_grad()
def _give_directions(transformer: nn.Module, targets: Sequence[str]) -> None:
    """Begin a DoRA's rows without a direction, those of zeros, with one of magnitude zero.

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

    modules = list(targets)
    if kind == "lokr":
        assert (dropout, init) == (0, "default"), "the settings are refused otherwise"
        return LoKrConfig(r=rank, alpha=alpha, target_modules=modules)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        init_lora_weights=_INITS[init],
        target_modules=modules,
        use_dora=kind == "dora",
    )


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
    """Let `weights` begin as `lora`, to the same effect; layers it does not have stay fresh.

    Raises:
        WrongUse: it has layers that are not trained here, or of other sizes.
    """
    for layer, start in sorted(lora.layers.items()):
        names = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        if names[0] not in weights:
            trained = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
            raise WrongUse(
                f"`init_lora`: {source} has {layer}, which is not among the {len(trained)} "
                f"layers trained here (such as {trained[0]}).",
                "Set `lora_target_modules` to what that LoRA was trained with.",
            )
        # the scale of this run is applied in every forward, that of the file must go in here
        up = start.up.float() * (start.scale / (alpha / rank))
        for name, value in zip(names, (start.down.float(), up), strict=True):
            if value.shape != weights[name].shape:
                raise WrongUse(
                    f"`init_lora`: {name} is {list(value.shape)} in {source} and "
                    f"{list(weights[name].shape)} here.",
                    "Give a LoRA of this model.",
                )
            weights[name].copy_(value)
