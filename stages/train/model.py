"""The model a run trains: the base, frozen, and on it the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn

from ..frozen_base.modulation_rows import ModulationRows
from ..frozen_base.modulation_table import (
    has_table,
    modulation_table,
    sizes_of,
    subset_of,
    trains_time,
    wants_table,
)
from ..frozen_base.quantized import MAKE_ANEW, quantized_base, wants_quantized
from ..models.lora.lora import CHANGES_BASE, add_lora, start_from, take_out_of_base, target_modules
from ..models.lora.lora_file import Lora, lora_scale
from ..models.quantization.quantize import precision_for
from ..models.quantization.quantized_linear import quantize_layers, quantized_tensors
from ..models.timesteps import spared_bytes
from ..models.transformer.full_training import bytes_a_weight, train_weights
from ..models.transformer.modulation import tabulate
from ..models.weights.streaming import (
    checked_tensors,
    count_numbers,
    empty_transformer,
    fill,
    layer_shapes,
    tensors_in,
)
from .data.seeds import seed_of
from .plan.training_plan import Plan
from .results.transformer_result import refuse_strange_transformer
from .state.initial_lora import read_initial_weights, write_initial_weights

# With less, Prodigy learns next to nothing.
LEAST_FOR_PRODIGY = 0.1


def training_dtype(plan: Plan) -> torch.dtype:
    """Return the dtype that the forward computes in."""
    return torch.bfloat16 if plan.settings.mixed_precision == "bf16" else torch.float32


def open_model(
    plan: Plan,
    *,
    device: torch.device,
    start: Lora | None = None,
    writes: bool = True,
    computes_on: torch.device | None = None,
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Load the base and put the LoRA on it (as `start`); return model and trained weights by name.

    With `model_type` full there is no LoRA: the base's own weights are trained.

    Where `qedit cache-base` has made the modulation table, a third of the base is not loaded.

    Args:
        device: where the base is read to.
        writes: whether this process keeps beside the run what the LoRA began as.
        computes_on: where it is used; None: there as well.
    """
    settings, is_full = plan.settings, plan.settings.model_type == "full"
    if is_full:
        refuse_strange_transformer(settings.output_dir)
    transformer = _load_base(plan, device=device, computes_on=computes_on or device)
    if is_full:
        return transformer, train_weights(transformer, subset_of(settings))
    weights = _add_adapter(plan, transformer, writes=writes)
    if start:
        start_from(
            weights,
            start,
            rank=settings.lora_rank,
            alpha=float(settings.lora_alpha),
            source=str(settings.init_lora),
        )
    return transformer, weights


def _add_adapter(plan: Plan, transformer: nn.Module, *, writes: bool) -> dict[str, nn.Parameter]:
    settings = plan.settings
    rank, alpha = settings.lora_rank, float(settings.lora_alpha)
    init, where = settings.lora_init_type, settings.output_dir
    began = read_initial_weights(where, run=plan.run) if init in CHANGES_BASE else None
    weights = add_lora(
        transformer,
        target_modules(transformer, settings.lora_target_modules),
        rank=rank,
        alpha=alpha,
        dropout=float(settings.lora_dropout),
        init="default" if began else init,
        kind=settings.lora_type,
        seed=seed_of(settings.seed, "lora"),
    )
    if began:
        take_out_of_base(transformer, began, scale=lora_scale(alpha=alpha, rank=rank))
        for name, weight in weights.items():
            weight.data.copy_(began[name])
    elif init in CHANGES_BASE and writes:
        write_initial_weights(where, weights, run=plan.run)
    return weights


def remarks(plan: Plan) -> Iterator[str]:
    """Yield what a user should know of the model before it is loaded, a line each."""
    checkpoint, settings = plan.checkpoint, plan.settings
    spared = f"{spared_bytes(**sizes_of(checkpoint)) / 1e9:.1f} GB"
    if trains_time(settings) and settings.model_type == "lora":
        yield f"Modulation is trained, so its weights stay in memory: {spared} in bfloat16."
    elif wants_table(settings) and not has_table(checkpoint, settings):
        yield (
            f"Modulation is a third of the model, {spared} here. Run `qedit cache-base` once, and "
            "training reads its outputs from disk instead, bit for bit the same."
        )
    if settings.model_type == "full":
        count = count_numbers(checkpoint.transformer)
        need = bytes_a_weight(training_dtype(plan)) * count / 1e9
        yield (
            f"To train all {count / 1e9:.1f} billion weights takes {need:.0f} GB with AdamW, "
            "beside activations; `lora_target_modules` names fewer."
        )
    if settings.num_train_epochs and settings.lr_warmup_steps >= plan.steps:
        yield (
            f"`lr_warmup_steps` is {settings.lr_warmup_steps} and the run has {plan.steps} steps: "
            "it ends before `learning_rate` is reached."
        )
    if settings.optimizer == "prodigy" and settings.learning_rate < LEAST_FOR_PRODIGY:
        yield (
            "Prodigy finds the learning rate itself and multiplies it by `learning_rate`, which is "
            f"{settings.learning_rate:g}: 1 is usual."
        )
    if settings.model_type == "lora" and settings.lora_type != "lokr":
        shapes = layer_shapes(checkpoint.transformer, settings.lora_target_modules)
        layer = min(shapes, key=lambda name: min(shapes[name]), default="")
        if layer and settings.lora_rank > min(shapes[layer]):
            yield (
                f"`lora_rank` {settings.lora_rank} is more than {layer} can use: its matrix is "
                f"{shapes[layer][0]}x{shapes[layer][1]}, so {min(shapes[layer])} hold any change."
            )
    if wants_quantized(settings) and not quantized_base(checkpoint, settings).is_there():
        yield (
            "The base is quantised as it is loaded. Run `qedit cache-base` once, and each start "
            "takes seconds."
        )


def _load_base(plan: Plan, *, device: torch.device, computes_on: torch.device) -> nn.Module:
    """Load the frozen transformer, tensor by tensor, to the device where it stays."""
    checkpoint, settings = plan.checkpoint, plan.settings
    folder, dtype = checkpoint.transformer, training_dtype(plan)
    precision = None
    if wants_quantized(settings):  # refused here, where the device cannot compute in it
        precision = precision_for(
            settings.base_model_precision,
            device=computes_on,
            quantizes_activations=settings.quantize_activations,
        )
    transformer = empty_transformer(folder, zero_cond_t=checkpoint.zero_cond_t)
    if wants_table(settings) and has_table(checkpoint, settings):
        tabulate(transformer, ModulationRows(modulation_table(checkpoint, settings), checkpoint))
    wanted = set(dict(transformer.named_parameters()))
    if precision is None:
        tensors = tensors_in(folder, remember=checkpoint.remember, wanted=wanted.__contains__)
        return fill(transformer, tensors, dtype=dtype, device=device, source=folder)
    layers = quantize_layers(
        transformer, precision, quantizes_activations=settings.quantize_activations
    )
    kept = quantized_base(checkpoint, settings)
    if kept.is_there():
        tensors = chain.from_iterable(
            checked_tensors(kept.folder / name, checksums, again=MAKE_ANEW)
            for name, checksums in kept.checksums().items()
        )
        folder = kept.folder
    else:
        via = computes_on if settings.quantize_via == "accelerator" else torch.device("cpu")
        read = tensors_in(folder, remember=checkpoint.remember, wanted=wanted.__contains__)
        tensors = quantized_tensors(read, layers, precision, dtype=dtype, via=via)
    return fill(transformer, tensors, dtype=dtype, device=device, source=folder)
