"""Fits a run into the memory of its device."""

from __future__ import annotations

import torch
from torch import nn

from ...config.settings import Settings
from ..models.block_streaming import stream_blocks
from ..models.fit import GIGABYTE, Fit, Recomputation
from ..models.memory import CONTEXT_BYTES
from ..models.recompute import recompute_blocks

# What the allocator cannot use between the tensors, as a share of the memory.
FRAGMENTS = 0.04


def load_device(fit: Fit, device: torch.device) -> torch.device:
    """Where the base is read to: the host, where blocks of it stay there."""
    return torch.device("cpu") if fit.streamed else device


def apply_fit(fit: Fit, transformer: nn.Module, *, device: torch.device) -> None:
    """Have `transformer`, which lies on `load_device(...)`, trained on `device` as `fit` says."""
    if fit.streamed:
        stream_blocks(transformer, fit.streamed, device=device)
        transformer.to(device)
    if fit.recomputation is not None:
        recompute_blocks(transformer, fit.recomputation)


def memory_budget_bytes(settings: Settings, device: torch.device) -> int | None:
    """How much device memory the run may take, its context included; None: nobody counts.

    `memory` in GB, or what is free of the GPU. Processors have memory enough for what runs on
    them, unless `memory` says otherwise.
    """
    if isinstance(settings.memory, int):
        return settings.memory * GIGABYTE
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total
    # the context is there by now: the free memory does not hold it any more
    return round((1 - FRAGMENTS) * min(free + CONTEXT_BYTES, allowed))


def without_counting(settings: Settings) -> Fit:
    """The fit where nobody counts: `gradient_checkpointing` and `blocks_to_stream` decide."""
    streamed = settings.blocks_to_stream
    return Fit(
        Recomputation() if settings.gradient_checkpointing else None,
        streamed=streamed if isinstance(streamed, int) else 0,
    )
