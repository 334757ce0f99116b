"""Activation checkpointing: blocks that are computed again in the backward.

A block's input is saved and everything inside it is computed again when its gradient is due: a
third more work, and the activations of one block instead of all. With memory to spare some
blocks keep their activations (`how.kept`) or attention's results (`how.attention`); with too
little, even the inputs go to the host. Each way gives the losses and gradients of a forward that
keeps everything, bit for bit.

The hooks of one block, in their order (this file and its neighbours):

    forward     block_streaming  copy the block's frozen weights to the device
                offload          put the saved input into host memory
                checkpoint       compute the block without saving (or attention alone)

    backward    offload          take the input back; start the copy for the block below
    (from the   checkpoint       compute the block again, and its gradients:
    last block)     block_streaming  copy the weights to the device once more
                    last_products    skip the MLP products that no gradient reads

      host RAM   [inputs 1..n]      [weights of streamed blocks]
                   ^ put  | take       | copy           | copy again
                   |      v            v                v
      device    forward: 1 -> 2 -> ... -> n   backward: n -> ... -> 2 -> 1
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
from .last_products import SkippedProducts, last_products
from .offload import HostCopy, HostMemory

Run = Callable[..., tuple[Tensor, Tensor]]
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
)


def recompute_blocks(transformer: nn.Module, how: Recomputation) -> None:
    """Make the blocks of `transformer` recompute in the backward, as `how` says."""
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
    """Return whether a gradient can flow through `block` at all."""
    tensors = (tensor for tensor in (*inputs, *block.parameters()) if isinstance(tensor, Tensor))
    return any(tensor.requires_grad for tensor in tensors)


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
    """Return the contexts of the forward and of the recomputation."""
    if not attention:
        return nullcontext(), SkippedProducts(unused)
    saved = [getattr(torch.ops.aten, name).default for name in _ATTENTION]
    forward, again = create_selective_checkpoint_contexts(saved)
    return forward, SkippedProducts(unused, around=again)


def _from_host(recomputed: Run, memory: HostMemory) -> Run:
    """Return `recomputed` with the block's two input states kept in `memory`."""

    def run(block: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
        image, text, *_ = inputs
        # what all blocks share (masks, rotations, the embedding of time) stays where it is
        own = {image.data_ptr(), text.data_ptr()}

        def pack(tensor: Tensor) -> Tensor | HostCopy:
            return memory.put(tensor) if tensor.data_ptr() in own else tensor

        def unpack(kept: Tensor | HostCopy) -> Tensor:
            return memory.take(kept) if isinstance(kept, HostCopy) else kept

        # `checkpoint` saves its inputs through these hooks, and what is inside through its own
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return recomputed(block, *inputs)

    return run
