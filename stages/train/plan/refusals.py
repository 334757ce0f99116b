"""Refuse settings that no run can begin with, before anything is cached or loaded."""

from __future__ import annotations

from ....config.settings import Settings
from ...frozen_base.quantized import wants_quantized
from ...models.checkpoint.checkpoint import part_config
from ...models.device import best_device
from ...models.flavours import FLAVOURS
from ...models.layers import chosen_layers
from ...models.lora.lora import refuse_other_layers
from ...models.memory_estimate.dimensions import Dimensions
from ...models.quantization.quantize import precision_for
from ..metrics import refuse_missing_tracker
from ..state.checkpoint import checkpoint_to_resume, step_of
from ..state.initial_lora import read_initial_lora
from ..state.optimizers import refuse_optimizer


def refuse_to_train(settings: Settings, *, device: str | None = None) -> None:
    """Raise if settings do not fit the model, or the packages that are installed.

    Reads a few small files, and the LoRA that a run is to begin with. A run that has all its
    steps is let through.

    Args:
        device: what will be trained on; None: it is not known yet.

    Raises:
        WrongUse: names the key, and what to do.
    """
    begin = checkpoint_to_resume(settings.output_dir, settings.resume_from_checkpoint)
    steps = settings.max_train_steps
    if begin is not None and steps is not None and step_of(begin) >= steps:
        return
    refuse_missing_tracker(settings)
    refuse_optimizer(settings)
    if device is not None and wants_quantized(settings):
        precision_for(
            settings.base_model_precision,
            device=best_device(device),
            quantizes_activations=settings.quantize_activations,
        )
    config = part_config(settings, "transformer")
    zero_cond_t = FLAVOURS[settings.model_flavour].zero_cond_t
    linears = Dimensions.of_config(config, zero_cond_t=zero_cond_t).linears()
    trained = chosen_layers(list(linears), settings.lora_target_modules)
    # a run that goes on has no more use for it
    if begin is None and (start := read_initial_lora(settings)) is not None:
        refuse_other_layers(
            start,
            {layer: linears[layer] for layer in trained},
            rank=settings.lora_rank,
            source=str(settings.init_lora),
        )
