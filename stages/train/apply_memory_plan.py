"""Fit a run into the memory of its device: recomputation and block streaming."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ...config.settings import Settings
from ..estimates.memory import way_of
from ..frozen_base.modulation_table import has_table, wants_table
from ..models.checkpoint.config_values import config_in
from ..models.memory_estimate.dimensions import Dimensions
from ..models.memory_estimate.memory import CONTEXT_BYTES, Load
from ..models.memory_estimate.memory_plan import GIGABYTE, Fit, Recomputation, budget_of, fit_into
from ..models.memory_saving.block_streaming import stream_blocks
from ..models.memory_saving.recompute import recompute_blocks
from ..samples.sample import NULL_CAPTION, Sample
from ..stores.run_stores import RunStores
from .data.batches import tokens_of
from .data.phases import Mixture
from .plan.training_plan import Plan

# The texts of so many samples of each of so many of the largest shapes are measured.
SHAPES_LOOKED_AT = 4
SAMPLES_LOOKED_AT = 64


def fit_of(plan: Plan, device: torch.device) -> Fit:
    """Return how the run `plan` is fitted into the memory of `device`.

    Raises:
        WrongUse: it does not fit in any way.
    """
    settings, checkpoint = plan.settings, plan.checkpoint
    budget = memory_budget_bytes(settings, device)
    streamed = settings.blocks_to_stream if isinstance(settings.blocks_to_stream, int) else None
    if budget is None or settings.model_type == "full":  # memory is not counted
        recomputation = Recomputation() if settings.gradient_checkpointing else None
        return Fit(recomputation, streamed=streamed or 0)
    sizes = Dimensions.of_config(
        config_in(checkpoint.transformer), zero_cond_t=checkpoint.zero_cond_t
    )
    table = wants_table(settings) and has_table(checkpoint, settings)
    return fit_into(
        budget,
        sizes,
        largest_load(plan.feed.order.samples, plan.feed.stores, batch=settings.train_batch_size),
        way_of(settings, table=table),
        streamed=streamed,
    )


def memory_lines(fit: Fit, plan: Plan) -> Iterator[str]:
    """Yield a line on how the run is fitted into memory, if anything is done for it."""
    if fit.needs_bytes or fit.streamed:
        blocks = config_in(plan.checkpoint.transformer)["num_layers"]
        takes = f"a step takes {fit.reason()}: " if fit.needs_bytes else ""
        yield f"Memory: {takes}{fit.words(blocks=blocks)}."


def largest_load(samples: Mixture, stores: RunStores, *, batch: int) -> Load:
    """Return the largest forward of the run: picture sizes, and the longest text beside them."""
    shapes = samples.shapes
    numbers = sorted(range(len(shapes.distinct)), key=lambda at: tokens_of(shapes.distinct[at]))
    largest = numbers[-SHAPES_LOOKED_AT:]
    text = max(
        _text_tokens(samples[row], stores)
        for number in largest
        for row in np.flatnonzero(shapes.numbers == number)[:SAMPLES_LOOKED_AT].tolist()
    )
    return Load(shapes.distinct[largest[-1]], text, batch)


def _text_tokens(sample: Sample, stores: RunStores) -> int:
    prefix = stores.prefixes.shape(sample.prefix_key, dataset=sample.dataset)
    tails = [
        stores.tails.shape(sample.tail_key(caption), dataset=sample.dataset)
        for caption in {*sample.captions, NULL_CAPTION}
    ]
    return prefix[0] + max(shape[0] for shape in tails)


def load_device(fit: Fit, device: torch.device) -> torch.device:
    """Return the device that the base is read to: the host, if blocks of it stay there."""
    return torch.device("cpu") if fit.streamed else device


def apply_fit(fit: Fit, transformer: nn.Module, *, device: torch.device) -> None:
    """Prepare `transformer`, which is on `load_device(...)`, for training on `device`."""
    if fit.streamed:
        stream_blocks(transformer, fit.streamed, device=device)
        transformer.to(device)
    if fit.recomputation is not None:
        recompute_blocks(transformer, fit.recomputation)


def memory_budget_bytes(settings: Settings, device: torch.device) -> int | None:
    """Return how many bytes of device memory the run may take, its context included; None: any.

    What is free of the GPU, and of that at most `memory` in GB. Processors have memory enough
    for what runs on them, unless `memory` says otherwise.
    """
    wanted = settings.memory * GIGABYTE if isinstance(settings.memory, int) else None
    if device.type != "cuda":
        return None if wanted is None else budget_of(wanted)
    free, total = torch.cuda.mem_get_info(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # newer than torch 2.6
    allowed = share(device) * total if share else total
    # the context is there by now: the free memory does not hold it any more
    there = min(free + CONTEXT_BYTES, allowed)
    return budget_of(there if wanted is None else min(wanted, there))
