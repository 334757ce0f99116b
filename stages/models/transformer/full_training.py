"""Training the transformer's own weights instead of a LoRA on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import IDLE_IN_LAST_BLOCK, fits
from ..lora.lora import target_modules


def train_weights(
    transformer: nn.Module, wanted: str | Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Make the weights of `transformer` trainable; return the optimizer's parameters by name.

    In float32 these are the model's own parameters. In any other dtype each is a float32 master
    of one: it is given the gradient, and a layer takes over what has changed before it
    computes. A bfloat16 weight by itself would lose most updates.

    Args:
        wanted: layers as `target_modules` takes them, weights and biases; None: everything
            that learns.
    """
    trained: dict[str, nn.Parameter] = {}
    for name in _names(transformer, wanted):
        path, _, leaf = name.rpartition(".")
        module = transformer.get_submodule(path)
        parameter = module.get_parameter(leaf)
        parameter.requires_grad_(True)
        exact = parameter.dtype == torch.float32
        used_with = transformer.get_submodule(_block_of(path))
        trained[name] = parameter if exact else _mastered(used_with, parameter)
    return trained


def _block_of(path: str) -> str:
    """Return the name of the block that the layer `path` is in, or of the layer itself.

    What is done before a whole block is outside of what is compiled of it.
    """
    parts = path.split(".")
    return ".".join(parts[:2]) if parts[0] == "transformer_blocks" else path


def _names(transformer: nn.Module, wanted: str | Sequence[str] | None) -> list[str]:
    names = [name for name, _ in transformer.named_parameters()]
    if wanted is not None:
        layers = set(target_modules(transformer, wanted))
        return [name for name in names if name.rpartition(".")[0] in layers]
    blocks = {name.split(".")[1] for name in names if name.startswith("transformer_blocks.")}
    last = f"transformer_blocks.{len(blocks) - 1}."
    # nothing sees the text that leaves the last block, nor what its queries are made with
    idle = [last + layer for layer in (*IDLE_IN_LAST_BLOCK, "attn.norm_added_q")]
    return [name for name in names if not any(_is_of(name, layer) for layer in idle)]


def _is_of(name: str, layer: str) -> bool:
    return fits(name.rpartition(".")[0], layer)


def _mastered(module: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
    """Return a float32 master of `parameter`, copied back whenever `module` is called."""
    following = _Following(nn.Parameter(parameter.detach().float()), parameter)
    parameter.register_post_accumulate_grad_hook(following.hand_over)
    module.register_forward_pre_hook(following.take_over)
    return following.master


class _Following:
    """A hook that hands gradients to the master and copies its changes back.

    Whether it has, its version says: whoever changes it must leave that trace.
    """

    def __init__(self, master: nn.Parameter, parameter: nn.Parameter) -> None:
        self.master, self._parameter = master, parameter
        self._seen = master._version

    def hand_over(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        before = self.master.grad
        self.master.grad = gradient if before is None else before + gradient
        parameter.grad = None

    @torch.no_grad()
    def take_over(self, module: nn.Module, inputs: Any) -> None:
        if self.master._version != self._seen:
            self._parameter.data.copy_(self.master)
            self._seen = self.master._version


def bytes_a_weight(dtype: torch.dtype) -> int:
    """Return the bytes of training with AdamW for each weight: itself, gradient, averages."""
    own = 0 if dtype == torch.float32 else torch.finfo(dtype).bits // 8
    return own + 4 + 4 + 8
