"""Translate settings into the options of the memory estimate, for `plan` and for `train`."""

from __future__ import annotations

from ...config.settings import Settings
from ..frozen_base.modulation_table import wants_table
from ..models.memory_estimate.memory import OPTIMIZER_BYTES, Way

_EMA_BYTES = 4.0  # of each trained number, where the average lies beside it


def way_of(settings: Settings, *, table: bool | None = None) -> Way:
    """Return the memory options that these settings ask for.

    Args:
        table: whether there is a modulation table; None: wherever one can be used.
    """
    on_device = settings.use_ema and settings.ema_device == "accelerator"
    streamed = settings.blocks_to_stream
    return Way(
        precision=settings.base_model_precision,
        table=wants_table(settings) if table is None else table,
        checkpointing=settings.gradient_checkpointing,
        streamed=streamed if isinstance(streamed, int) else 0,
        number_bytes=2 if settings.mixed_precision == "bf16" else 4,
        targets=settings.lora_target_modules,
        rank=settings.lora_rank,
        trained_bytes=OPTIMIZER_BYTES[settings.optimizer] + (_EMA_BYTES if on_device else 0),
        accumulates=settings.gradient_accumulation_steps > 1,
    )
