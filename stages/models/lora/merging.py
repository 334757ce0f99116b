"""A LoRA baked into a transformer, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ....cache.errors import WrongUse
from .lora_file import Lora, LowRank


def merged(
    tensors: Iterable[tuple[str, Tensor]], lora: Lora, *, dtype: torch.dtype, source: Path
) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's `tensors` in `dtype`, with `lora` added to its layers.

    Sums are made in float32 and rounded once. One tensor is in memory at a time.

    Raises:
        WrongUse: `lora` has layers that the checkpoint has not, or of another shape.
    """
    left = dict(lora.layers)
    for name, tensor in tensors:
        pair = left.pop(name.removesuffix(".weight"), None) if name.endswith(".weight") else None
        yield name, (tensor if pair is None else _sum(name, tensor, pair)).to(dtype)
    if left:
        raise WrongUse(
            f"The LoRA has {len(left)} layers that {source} has not, the first is {min(left)}.",
            "Name the checkpoint that the LoRA was trained on.",
        )


def _sum(name: str, tensor: Tensor, pair: LowRank) -> Tensor:
    added = pair.up.float() @ pair.down.float() * pair.scale
    if added.shape != tensor.shape:
        raise WrongUse(
            f"The LoRA adds {list(added.shape)} to {name}, which is {list(tensor.shape)}.",
            "Name the checkpoint that the LoRA was trained on.",
        )
    return tensor.float() + added
