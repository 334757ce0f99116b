"""Activation checkpointing: which blocks are computed again in the backward, and from where.

A block's input is kept and everything inside it is computed again when its gradient is due:
a third more work, and the activations of one block instead of all. With memory to spare some
blocks are better left alone, or what attention gave is kept; with too little, even the inputs
go to the host. Each way gives the losses and gradients of a forward that keeps everything, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ..memory_estimate.memory_plan import Recomputation
from .last_products import LeftOut, last_products
from .offload import Held, HostMemory

Run = Callable[..., tuple[Tensor, Tensor]]
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
)


def recompute_blocks(transformer: nn.Module, how: Recomputation) -> None:
    """Have the blocks of `transformer` computed again in the backward, as `how` says."""
    blocks = list(transformer.transformer_blocks)  # type: ignore[arg-type]
    again = len(blocks) - how.kept
    alone = frozenset(map(id, blocks[again:]))
    # of those that are computed again the last, too: they keep it for the shortest time
    seen = frozenset(map(id, blocks[max(0, again - how.attention) : again]))

    def recomputed(block: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
        return _recompute(block, *inputs, attention=id(block) in seen)

    ways: Run = _from_host(recomputed, HostMemory()) if how.inputs_to_host else recomputed

    def run(block: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
        if id(block) in alone or not _has_backward(block, inputs):
            states: tuple[Tensor, Tensor] = block(*inputs)
            return states
        return ways(block, *inputs)

    transformer.enable_gradient_checkpointing(run)  # type: ignore[operator]


def _has_backward(block: nn.Module, inputs: Sequence[Any]) -> bool:
    """Whether anyone will ever ask for what is kept of `block`."""
    tensors = (one for one in (*inputs, *block.parameters()) if isinstance(one, Tensor))
    return any(one.requires_grad for one in tensors)


def _recompute(block: nn.Module, *inputs: Any, attention: bool) -> tuple[Tensor, Tensor]:
    image, _, _, embedding, *_ = inputs
    unused = last_products(block, image, embedding)
    states: tuple[Tensor, Tensor] = checkpoint(
        block.__call__,
        *inputs,
        use_reentrant=False,
        context_fn=partial(_contexts, unused, attention=attention),
    )
    return states


def _contexts(unused: Sequence[nn.Linear], *, attention: bool) -> Contexts:
    """Of the forward, and of what is computed again."""
    if not attention:
        return nullcontext(), LeftOut(unused)
    saved = [getattr(torch.ops.aten, name).default for name in _ATTENTION]
    forward, again = create_selective_checkpoint_contexts(saved)
    return forward, LeftOut(unused, around=again)


def _from_host(recomputed: Run, memory: HostMemory) -> Run:
    """`recomputed`, with the two streams of states that enter the block kept in `memory`."""

    def run(block: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
        image, text, *_ = inputs
        # what all blocks share (masks, rotations, the embedding of time) stays where it is
        own = {image.data_ptr(), text.data_ptr()}

        def pack(tensor: Tensor) -> Tensor | Held:
            return memory.put(tensor) if tensor.data_ptr() in own else tensor

        def unpack(kept: Tensor | Held) -> Tensor:
            return memory.take(kept) if isinstance(kept, Held) else kept

        # `checkpoint` saves its inputs through these hooks, and what is inside through its own
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return recomputed(block, *inputs)

    return run
