"""What a run is made of, worked out before anything heavy is loaded or written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.loading import Configuration
from ...config.settings import Settings
from ..models.checkpoint import Checkpoint, model_digest, open_checkpoint
from ..pairs_table import read_pairs
from ..samples import NULL_CAPTION
from ..stores import RunStores, digests_file, open_stores
from .batches import Order, Source
from .feed import Feed
from .flow import AutoShift, Distribution, Sigmas
from .optimizers import optimizer_class
from .record import describe_run


@dataclass(frozen=True)
class Plan:
    """A run that can begin: the rows are there and settings and checkpoint agree.

    Attributes:
        steps: how many optimizer steps the run has in all.
        run: what decides it, as in run.json.
    """

    settings: Settings
    checkpoint: Checkpoint
    feed: Feed
    steps: int
    run: dict[str, Any]


def make_plan(configuration: Configuration) -> Plan:
    """Read the pairs, look every row up, and say how long the run is.

    Raises:
        NotComplete: no pairs for these settings, or rows of theirs are missing.
        WrongUse: the checkpoint contradicts the flavour, or no dataset is in the mix.
    """
    settings = configuration.settings
    optimizer_class(settings.optimizer)  # refuses one whose package is missing
    checkpoint = open_checkpoint(settings)
    sources = _sources(configuration, checkpoint)
    stores = open_stores(configuration, checkpoint)
    samples = [sample for source in sources for sample in source.samples]
    beside = (NULL_CAPTION,) if settings.caption_dropout_probability else ()
    stores.missing(samples, beside).refuse(len(samples), then="qedit train")
    order = Order(
        sources,
        settings.seed,
        batch_size=settings.train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
    )
    feed = Feed(
        order=order,
        stores=stores,
        sigmas=sigmas_of(settings, checkpoint.scheduler),
        seed=settings.seed,
        caption_dropout=settings.caption_dropout_probability,
    )
    run = describe_run(
        settings,
        sources,
        transformer_digest=model_digest(checkpoint.transformer, remember=digests_file(settings)),
        zero_cond_t=checkpoint.zero_cond_t,
        recipes=_recipes(stores),
    )
    return Plan(settings, checkpoint, feed, steps=_steps(settings, order), run=run)


def _sources(configuration: Configuration, checkpoint: Checkpoint) -> Sequence[Source]:
    return [
        Source(
            name=main.id,
            samples=read_pairs(configuration, main, checkpoint.flavour).samples,
            repeats=main.repeats,
            probability=main.probability,
            start_step=main.start_step,
            end_step=main.end_step,
        )
        for main in configuration.main_datasets()
    ]


def _recipes(stores: RunStores) -> dict[str, str]:
    shelves = {
        "latents": stores.latents,
        "image prefixes": stores.prefixes,
        "text tails": stores.tails,
    }
    return {name: shelf.stores()[0].fingerprint for name, shelf in shelves.items()}


def _steps(settings: Settings, order: Order) -> int:
    if settings.num_train_epochs:
        return order.steps_for(settings.num_train_epochs)
    assert settings.max_train_steps, "one of the two has a default"
    return settings.max_train_steps


def sigmas_of(settings: Settings, scheduler: Path) -> Sigmas:
    """How sigmas are drawn; the auto shift's constants are those of the checkpoint's scheduler."""
    shift: float | AutoShift = float(settings.flow_schedule_shift or 1.0)
    if settings.flow_schedule_auto_shift:
        config = json.loads((scheduler / "scheduler_config.json").read_text(encoding="utf-8"))
        shift = AutoShift.of_scheduler(config)
    distribution: Distribution = "sigmoid"
    if settings.flow_use_uniform_schedule:
        distribution = "uniform"
    elif settings.flow_use_beta_schedule:
        distribution = "beta"
    return Sigmas(
        distribution=distribution,
        scale=settings.flow_sigmoid_scale,
        alpha=settings.flow_beta_schedule_alpha,
        beta=settings.flow_beta_schedule_beta,
        shift=shift,
    )
