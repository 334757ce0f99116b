"""The model a run trains: the base, frozen, and on it the weights that are trained."""

from __future__ import annotations

import torch
from torch import nn

from ..models.lora import add_lora, start_from, target_modules
from ..models.lora_file import Lora
from ..models.transformer import load_transformer
from .draws import seed_of
from .plan import Plan


def training_dtype(plan: Plan) -> torch.dtype:
    """What the forward computes in."""
    return torch.bfloat16 if plan.settings.mixed_precision == "bf16" else torch.float32


def open_model(
    plan: Plan, *, device: torch.device, start: Lora | None = None
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Load the base and put the LoRA on it (as `start`): the model, what is trained by name."""
    settings = plan.settings
    transformer = load_transformer(plan.checkpoint, dtype=training_dtype(plan), device=device)
    weights = add_lora(
        transformer,
        target_modules(transformer, settings.lora_target_modules),
        rank=settings.lora_rank,
        alpha=float(settings.lora_alpha),
        dropout=float(settings.lora_dropout),
        init="gaussian" if settings.lora_init_type == "gaussian" else "default",
        seed=seed_of(settings.seed, "lora"),
    )
    if start:
        start_from(
            weights,
            start,
            rank=settings.lora_rank,
            alpha=float(settings.lora_alpha),
            source=str(settings.init_lora),
        )
    return transformer, weights
