"""The plan of a run, made before anything heavy is loaded or written."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ....cache.files.fingerprint import fingerprint
from ....cache.format.tables import table_in
from ....config.datasets import Dataset
from ....config.loading import Configuration
from ....config.settings import Settings
from ...frozen_base.quantized import refuse_incomplete_base
from ...models.checkpoint.checkpoint import ENCODERS, Checkpoint
from ...models.checkpoint.config_values import config_object
from ...models.checkpoint.digests import digests_file, model_digest
from ...samples.sample import NULL_CAPTION
from ...samples.schema import flat
from ...samples.store_keys import pairs_keys
from ...samples.table import captions_beside
from ...stores.recipes import deciding
from ...stores.row_kinds import RowKind
from ...stores.run import Run
from ...stores.run_stores import RunStores
from ..data.batches import Order, Source
from ..data.feed import Feed
from ..data.phases import Mixture
from ..data.row_check import all_rows_are_there, samples_digest
from ..data.scheduled_sampling import rollouts_of
from ..data.sigmas import Sigmas
from ..state.initial_lora import initial_lora_digest
from ..state.run_record import describe_run
from .refusals import refuse_to_train

# How many held-out samples are measured; a larger `num_eval_images` asks for more.
HELD_OUT_SAMPLES = 16
_TARGETS = pa.schema({"sample": pa.string(), "digest": pa.string()})
MANY_OBJECTS = 1_000_000


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


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Switch the garbage collector off in the block, which makes millions of objects.

    None of them is garbage, and looking for some would take the longest. If there are many, they
    are frozen: the collector never looks at them again in this process.
    """
    was_on = gc.isenabled()
    before = gc.get_count()[0]
    gc.disable()
    try:
        yield
        if gc.get_count()[0] - before > MANY_OBJECTS:
            gc.freeze()
    finally:
        if was_on:
            gc.enable()


@gc_frozen()
def make_plan(configuration: Configuration) -> Plan:
    """Read the pairs, look every row up, and say how long the run is.

    Raises:
        NotComplete: no pairs for these settings, or rows of theirs are missing.
        WrongUse: the checkpoint contradicts the flavour, no dataset is in the mix, or what
            `refuse_to_train` refuses.
    """
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
        digests = {main.id: samples_digest(configuration, checkpoint, main.id) for main in mains}
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
    run["tables"] = {
        run["datasets"][main.id]["digest"]: table_name(opened.pairs(main).path) for main in mains
    }
    steps = steps_of(settings, order)
    held_out, count = _held_out(opened, feed)
    leak = overlap_warning(configuration, checkpoint)
    warnings = (*_cut_off(settings, order, sources), *((leak,) if leak else ()))
    return Plan(opened, feed, steps, run, held_out, count, warnings)


def _held_out(opened: Run, feed: Feed) -> tuple[Feed | None, int]:
    """Return a feed of one held-out sample a step, and how many of them are measured.

    Their order does not change with the training. An evaluation must not take longer than it.
    """
    settings = opened.settings
    sources = [
        Source(main.id, opened.accepted_samples(main))
        for main in opened.configuration.eval_datasets()
    ]
    if not any(source.samples for source in sources):
        return None, 0
    order = Order(sources, settings.validation_seed, batch_size=1, accumulation=1)
    held_out = replace(
        feed, order=order, seed=settings.validation_seed, caption_dropout=0.0, rollouts=None
    )
    count = min(order.steps_for(1), max(HELD_OUT_SAMPLES, settings.num_eval_images))
    measured = [order.step(place + 1)[0][0] for place in range(count)]
    feed.stores.missing(measured, ()).refuse(count, then="qedit train")
    return held_out, count


def _recipes(stores: RunStores) -> dict[str, str]:
    """Return the fingerprint of each recipe; rows are the same whether they are packed or not."""
    recipes = {}
    for kind in (RowKind.LATENTS, RowKind.PREFIXES, RowKind.TAILS):
        recipe = stores.of(kind).stores()[0].recipe
        recipes[kind.words] = fingerprint(deciding(recipe))
    return recipes


def table_name(table: Path) -> str:
    """Return the name of a pairs table in the folder of its dataset's tables."""
    return f"{table.parent.name}/{table.name}"


def steps_of(settings: Settings, order: Order) -> int:
    """Return how many optimizer steps a run of these settings has.

    Raises:
        WrongUse: one of them has no sample.
    """
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


def overlap_warning(configuration: Configuration, checkpoint: Checkpoint) -> str | None:
    """Return a warning about held-out samples whose target is trained on too; None: no such.

    Targets are compared by the content of their files, whatever their names.
    """
    held = _targets(configuration, configuration.eval_datasets(), checkpoint)
    if not len(held):
        return None
    shown = _targets(configuration, configuration.main_datasets(), checkpoint)
    leaked = held.filter(pc.is_in(held["digest"], value_set=shown["digest"]))["sample"].to_pylist()
    if not leaked:
        return None
    verb = "is" if len(leaked) == 1 else "are"
    return (
        f"{len(leaked)} of {len(held)} held-out samples {verb} trained on as well, the first is "
        f"{leaked[0]}: the held-out loss then falls by memorising, and `best/` follows it. Take "
        "them out of one of the two datasets."
    )


def _targets(
    configuration: Configuration, mains: Iterable[Dataset], checkpoint: Checkpoint
) -> pa.Table:
    """Return the name of each sample of `mains`, and the content digest of its target."""
    tables = [_TARGETS.empty_table()]
    for main in mains:
        path = pairs_keys(configuration, main, checkpoint.flavour).path
        table = table_in(path.read_bytes(), ["sample", "target.digest"])
        columns = [flat(table["sample"]), flat(table["target"]).field("digest")]
        tables.append(pa.table(columns, schema=_TARGETS))
    return pa.concat_tables(tables)


def sigmas_of(settings: Settings, scheduler: Path) -> Sigmas:
    """Return how sigmas are drawn; the auto shift's constants are those of the scheduler."""
    config = None
    if settings.flow_schedule_auto_shift:
        config = config_object(scheduler / "scheduler_config.json")
    flat, beta = settings.flow_use_uniform_schedule, settings.flow_use_beta_schedule
    return Sigmas(
        distribution="uniform" if flat else "beta" if beta else "sigmoid",
        scale=settings.flow_sigmoid_scale,
        alpha=settings.flow_beta_schedule_alpha,
        beta=settings.flow_beta_schedule_beta,
        shift=float(settings.flow_schedule_shift or 1.0),
        scheduler=config,
    )
