"""The transformer with its adapter, as `qedit train` makes it and as the yardstick does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Asked
from made_base import made_base
from peft import LoraConfig
from shapes import ZERO_COND_T
from torch import nn

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.memory_estimate.memory_plan import Fit
from qedit.stages.train.apply_memory_plan import load_device

RANK = 16


@dataclass
class Base:
    """A transformer with its adapter, and what the adapter began as."""

    key: tuple[Any, ...]
    transformer: nn.Module
    trained: dict[str, nn.Parameter]
    began: dict[str, torch.Tensor]

    def begin_again(self) -> None:
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(self.began[name])
                weight.grad = None

    def be_of(self, flavour: str) -> None:
        """Both kinds of flavour have the same weights."""
        holders: list[Any] = [self.transformer, *self.transformer.transformer_blocks]  # type: ignore[misc]
        for holder in holders:
            holder.zero_cond_t = ZERO_COND_T[flavour]


def own_base(
    asked: Asked, folder: Path, device: torch.device, fit: Fit
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """As `qedit train` makes it."""
    transformer = made_base(
        folder,
        zero_cond_t=ZERO_COND_T[asked.flavour],
        precision=asked.precision,
        table=asked.table,
        device=device,
        lies_on=load_device(fit, device),
    )
    targets = target_modules(transformer, "attention")
    return transformer, add_lora(transformer, targets, rank=RANK, alpha=RANK, seed=0)


def stock_base(
    asked: Asked, folder: Path, device: torch.device, fit: Fit
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """As diffusers' and PEFT's own examples make it."""
    transformer: Any = made_base(
        folder,
        zero_cond_t=ZERO_COND_T[asked.flavour],
        precision="no_change",
        table=False,
        device=device,
    )
    if asked.precision == "int8":
        from optimum.quanto import freeze, qint8, quantize

        for block in transformer.transformer_blocks:
            quantize(block, weights=qint8)
            freeze(block)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    transformer.requires_grad_(False)
    trained = {name: one for name, one in transformer.named_parameters() if "lora_" in name}
    for one in trained.values():  # their examples train the adapter in float32
        one.data = one.data.float()
        one.requires_grad_(True)
    transformer.enable_gradient_checkpointing()
    return transformer, trained
