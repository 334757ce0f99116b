"""LoRA on the transformer: which layers, how they start, and the file that other tools load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...cache.errors import WrongUse
from ...cache.fingerprint import canonical_json

_IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_IMAGE_MLP = ("img_mlp.net.0.proj", "img_mlp.net.2")
_TEXT_MLP = ("txt_mlp.net.0.proj", "txt_mlp.net.2")
_MODULATION = ("img_mod.1", "txt_mod.1")
_BLOCK_LINEARS = (*_IMAGE_ATTENTION, *_TEXT_ATTENTION, *_IMAGE_MLP, *_TEXT_MLP)

PRESETS: dict[str, tuple[str, ...]] = {
    "attention": _IMAGE_ATTENTION,
    "joint-attention": (*_IMAGE_ATTENTION, *_TEXT_ATTENTION),
    "attention+mlp": (*_IMAGE_ATTENTION, *_IMAGE_MLP),
    "all-linear": _BLOCK_LINEARS,
    "all-linear+modulation": (*_BLOCK_LINEARS, *_MODULATION),
}

# The text output of the last block is thrown away: what only that depends on never learns.
# Its text keys and values are seen by the picture, so they do.
_IDLE_IN_LAST_BLOCK = ("attn.add_q_proj", "attn.to_add_out", *_TEXT_MLP)

_ADAPTER = "default"
_INITS: dict[str, bool | str] = {"default": True, "gaussian": "gaussian"}
# What diffusers' pipelines call the model that a key belongs to.
_PREFIX = "transformer."


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
        if not any(_ends_with(layer, name) for layer in layers):
            near = get_close_matches(name, _BLOCK_LINEARS + _MODULATION, 1, 0.4)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise WrongUse(
                f"`lora_target_modules`: no layer of the transformer is called `{name}`.{hint}",
                f"Name a preset ({', '.join(PRESETS)}) or layers as diffusers calls them.",
            )
    return [layer for layer in layers if any(_ends_with(layer, name) for name in names)]


def _learning_linears(transformer: nn.Module) -> list[str]:
    blocks = {name.split(".")[1] for name, _ in transformer.named_modules() if _in_block(name)}
    last = f"transformer_blocks.{len(blocks) - 1}."
    idle = {last + name for name in _IDLE_IN_LAST_BLOCK}
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name not in idle
    ]


def _in_block(name: str) -> bool:
    return name.startswith("transformer_blocks.")


def _ends_with(layer: str, name: str) -> bool:
    return layer == name or layer.endswith("." + name)


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


def lora_file(
    weights: Mapping[str, Tensor], *, rank: int, alpha: float, about: Mapping[str, Any]
) -> bytes:
    """A `pytorch_lora_weights.safetensors` that diffusers' pipelines and ComfyUI load as it is.

    Both take the scale of such a file for 1 (alpha = rank): diffusers cannot read an alpha
    beside these keys. So the scale alpha / rank is folded into the weights, and the metadata
    gives the alpha of the file (= rank) beside the scale it was trained with.
    """
    scale = alpha / rank
    folded = {
        _PREFIX + name: (weight * scale if ".lora_B." in name else weight)
        .detach()
        .to("cpu", torch.float32)
        .contiguous()
        for name, weight in weights.items()
    }
    facts = {"rank": rank, "alpha": rank, "trained_alpha": alpha, "trained_scale": scale}
    metadata = {"format": "pt"} | {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in {**about, **facts}.items()
    }
    return _in_order(safetensors.torch.save(folded, metadata))


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its header sorted: equal weights give equal bytes.

    The library writes metadata in an order that differs from process to process. The header
    is JSON after 8 bytes that give its length, padded with blanks so that tensors are aligned.
    """
    length = int.from_bytes(data[:8], "little")
    header = canonical_json(json.loads(data[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
