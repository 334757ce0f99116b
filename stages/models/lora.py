"""LoRA on the transformer: which layers, and how they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from ...cache.errors import WrongUse
from .layers import BLOCK_LINEARS, IDLE_IN_LAST_BLOCK, MODULATION, PRESETS, fits
from .lora_file import Lora

_ADAPTER = "default"
_INITS: dict[str, bool | str] = {"default": True, "gaussian": "gaussian"}


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
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Freeze `transformer` and put a LoRA of float32 weights on the layers `targets`.

    The same seed gives the same weights; a fresh LoRA changes no output. Returns the weights
    by name, as in `transformer_blocks.0.attn.to_q.lora_A.weight`.

    Args:
        alpha: the LoRA's output is scaled by alpha / rank.
        init: `default` (Kaiming uniform) or `gaussian`.
    """
    from peft import LoraConfig

    transformer.requires_grad_(False)
    options: dict[str, Any] = {"lora_alpha": alpha, "init_lora_weights": _INITS[init]}
    config = LoraConfig(r=rank, lora_dropout=dropout, target_modules=list(targets), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=_ADAPTER)  # type: ignore[operator]
    return _lora_weights(transformer)


def _lora_weights(transformer: nn.Module) -> dict[str, nn.Parameter]:
    weights = {}
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            # a bfloat16 weight would lose most updates at usual learning rates
            parameter.data = parameter.data.float()
            weights[name.replace(f".{_ADAPTER}.", ".")] = parameter
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
