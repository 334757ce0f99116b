"""The plan of a run, made before anything heavy is loaded or written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....cache.files.fingerprint import fingerprint
from ....cache.store.store import COMPRESSION
from ....config.loading import Configuration
from ....config.settings import Settings
from ...frozen_base.quantized import refuse_incomplete_base
from ...models.checkpoint.checkpoint import ENCODERS, Checkpoint
from ...models.checkpoint.digests import digests_file, model_digest
from ...samples.sample import NULL_CAPTION
from ...samples.table import captions_beside
from ...stores.row_kinds import RowKind
from ...stores.run import Run
from ...stores.run_stores import RunStores
from ..data.batches import Order, Source
from ..data.feed import Feed
from ..data.mixture import Mixture
from ..data.row_check import all_rows_are_there, samples_digest
from ..data.scheduled_sampling import rollouts_of
from ..data.sigmas import Distribution, Sigmas
from ..memory_use import gc_frozen
from ..state.run_record import describe_run
from .held_out_overlap import overlap_warning
from .initial_lora import initial_lora_digest
from .refusals import refuse_to_train

# How many held-out samples are measured; a larger `num_eval_images` asks for more.
HELD_OUT_SAMPLES = 16


@dataclass(frozen=True)
class Plan:
    """A run that can begin: the rows are there and settings and checkpoint agree.

    Attributes:
        opened: the configuration with its checkpoint, stores and tables.
        steps: how many optimizer steps the run has in all.
        run: what decides it, as in run.json.
        held_out: the samples that are only measured, one a step; None where there are none.
        held_out_count: how many of them are measured.
        warnings: what a user is to know before it begins.
    """

    opened: Run
    feed: Feed
    steps: int
    run: dict[str, Any]
    held_out: Feed | None = None
    held_out_count: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def settings(self) -> Settings:
        return self.opened.settings

    @property
    def checkpoint(self) -> Checkpoint:
        return self.opened.checkpoint


def make_plan(configuration: Configuration) -> Plan:
    """Read the pairs, look every row up, and say how long the run is.

    Raises:
        NotComplete: no pairs for these settings, or rows of theirs are missing.
        WrongUse: the checkpoint contradicts the flavour, no dataset is in the mix, or what
            `refuse_to_train` refuses.
    """
    with gc_frozen():
        return _make_plan(configuration)


def _make_plan(configuration: Configuration) -> Plan:
    settings = configuration.settings
    refuse_to_train(settings)
    opened = Run(configuration, spared=ENCODERS)
    checkpoint, stores = opened.checkpoint, opened.stores
    mains = configuration.main_datasets()
    sources = [Source.of(main, opened.accepted_samples(main)) for main in mains]
    refuse_incomplete_base(checkpoint, settings)
    beside = (NULL_CAPTION,) if settings.caption_dropout_probability else ()
    digests = {}
    if all_rows_are_there(configuration, checkpoint, stores, beside=captions_beside(settings)):
        digests = {
            source.name: samples_digest(configuration, checkpoint, source.name)
            for source in sources
        }
    else:
        samples = Mixture([source.samples for source in sources])
        stores.missing(samples, beside).refuse(len(samples), then="qedit train")
    order = Order.of(sources, settings)
    feed = Feed(
        order=order,
        stores=stores,
        sigmas=sigmas_of(settings, checkpoint.scheduler),
        seed=settings.seed,
        caption_dropout=settings.caption_dropout_probability,
        rollouts=rollouts_of(settings),
    )
    run = describe_run(
        settings,
        sources,
        transformer_digest=model_digest(checkpoint.transformer, remember=digests_file(settings)),
        zero_cond_t=checkpoint.zero_cond_t,
        recipes=_recipes(stores),
        digests=digests,
        start=initial_lora_digest(settings),
    )
    steps = _steps(settings, order)
    held_out = _held_out(opened, feed)
    count = _held_out_count(settings, held_out)
    leak = overlap_warning(configuration, checkpoint)
    warnings = (*_cut_off(settings, order, sources), *((leak,) if leak else ()))
    return Plan(opened, feed, steps, run, held_out, count, warnings)


def _held_out(opened: Run, feed: Feed) -> Feed | None:
    """Return a feed of one held-out sample a step, in an order that training does not change."""
    settings = opened.settings
    sources = [
        Source(main.id, opened.accepted_samples(main))
        for main in opened.configuration.eval_datasets()
    ]
    if not any(source.samples for source in sources):
        return None
    order = Order(sources, settings.validation_seed, batch_size=1, accumulation=1)
    held_out = replace(
        feed, order=order, seed=settings.validation_seed, caption_dropout=0.0, rollouts=None
    )
    count = _held_out_count(settings, held_out)
    measured = [order.step(place + 1)[0][0] for place in range(count)]
    feed.stores.missing(measured, ()).refuse(count, then="qedit train")
    return held_out


def _held_out_count(settings: Settings, held_out: Feed | None) -> int:
    """Return how many are measured: an evaluation must not take longer than the training."""
    if held_out is None:
        return 0
    return min(held_out.order.steps_for(1), max(HELD_OUT_SAMPLES, settings.num_eval_images))


def _recipes(stores: RunStores) -> dict[str, str]:
    kinds = (RowKind.LATENTS, RowKind.PREFIXES, RowKind.TAILS)
    return {kind.words: _name_of(stores.of(kind).stores()[0].recipe) for kind in kinds}


def _name_of(recipe: Mapping[str, Any]) -> str:
    """Return the fingerprint of a recipe; rows are the same whether they are packed or not."""
    return fingerprint({key: value for key, value in recipe.items() if key != COMPRESSION})


def _steps(settings: Settings, order: Order) -> int:
    if settings.num_train_epochs:
        return order.steps_for(settings.num_train_epochs)
    assert settings.max_train_steps, "one of the two has a default"
    order.refuse_gaps(settings.max_train_steps)
    return settings.max_train_steps


def _cut_off(settings: Settings, order: Order, sources: Sequence[Source]) -> Iterator[str]:
    """Yield a warning for each dataset that ends before it has been shown in every epoch."""
    epochs = settings.num_train_epochs
    ends = {source.name: source.end_step for source in sources if source.end_step is not None}
    for name, shown in (order.short_of(epochs) if epochs and ends else {}).items():
        yield (
            f"Dataset {name} ends at step {ends[name]} (`end_step`), after {shown} of the "
            f"{epochs} passes that `num_train_epochs` asks for."
        )


def sigmas_of(settings: Settings, scheduler: Path) -> Sigmas:
    """Return how sigmas are drawn; the auto shift's constants are those of the scheduler."""
    config = None
    if settings.flow_schedule_auto_shift:
        config = json.loads((scheduler / "scheduler_config.json").read_text(encoding="utf-8"))
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
        shift=float(settings.flow_schedule_shift or 1.0),
        scheduler=config,
    )
