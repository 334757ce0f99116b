"""Estimate what a run will take in disk, memory and time, before anything is started.

Reads the two files, the pairs tables (or, before `qedit pair`, names and headers in the
folders) and the model's config.json. Loads no weights and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...cache.errors import NotComplete
from ...config.configuration import Configuration
from ...config.settings import Settings
from ...stages.estimates.disk import Encoders, text_tokens
from ...stages.estimates.memory import way_of
from ...stages.models.checkpoint.checkpoint import (
    flavour_of,
    is_model_local,
    open_checkpoint,
    part_config,
)
from ...stages.models.flavours import Flavour
from ...stages.models.memory_estimate.dimensions import Dimensions
from ...stages.models.memory_estimate.memory import (
    LORA_BYTES,
    OPTIMIZER_BYTES,
    Load,
    Memory,
    Way,
    memory_of,
    step_flops,
)
from ...stages.models.memory_estimate.memory_plan import GIGABYTE, Rung, budget_of, fit_into, ladder
from ...stages.models.memory_estimate.memory_plan import Fit as Fitted
from ...stages.pair.acceptance import look_ahead
from ...stages.run_output.metrics_file import step_seconds
from ...stages.samples.sample import Sample
from ...stages.samples.table import read_pairs, used_main_datasets
from ...stages.stores.previewed import foreseen_previews
from ...stages.train.data.batches import Order, Source
from .disk import Disk, Model, disk_of

WORTH_NAMING = 0.01  # of the memory of a step
USUAL_FLOPS = 400e12  # what a large GPU of today gives in training, for a first idea of time


@dataclass(frozen=True)
class Fit:
    """A way to fit the run, with the memory it needs."""

    rung: Rung
    memory: Memory

    def as_object(self) -> dict[str, Any]:
        return {
            "name": self.rung.name,
            "settings": dict(self.rung.settings),
            "costs": self.rung.costs,
            "bytes": self.memory.total,
        }


@dataclass
class Plan:
    """Everything `qedit plan` knows. Sizes in bytes, times in seconds.

    Attributes:
        pairs: main dataset -> how many samples.
        found_by: "pairs tables", or "names and headers" before `qedit pair`.
        blocks: of the model.
        load: the forward that needs most; `sample` is one that has it.
        memory: as the settings stand.
        fits: every way to fit the run; `chosen` is the first within `budget_bytes`.
        fitted: what `train` then does with what is left of them; `training` in words.
        step_seconds: measured in this run's folder; None where nothing was.
        vram_bytes: of the device that was asked about.
        limit_bytes: what the run may take of it: `memory` may be less.
    """

    pairs: dict[str, int]
    rejected: int
    found_by: str
    blocks: int
    sample: str
    load: Load
    disk: Disk
    memory: Memory
    fits: list[Fit]
    optimizer: str
    steps: int
    flops: float
    step_seconds: float | None
    vram_bytes: int | None = None
    limit_bytes: int | None = None
    chosen: Fit | None = None
    fitted: Fitted | None = None

    @property
    def budget_bytes(self) -> int | None:
        """Return what a step may be estimated to take, as `train` counts it."""
        return None if self.limit_bytes is None else budget_of(self.limit_bytes)

    @property
    def optimizer_saves_bytes(self) -> int:
        """Return what 8-bit averages would save; 0 for other optimizers, or hardly anything."""
        if self.optimizer != "adamw":
            return 0
        share = 1 - OPTIMIZER_BYTES["adamw-8bit"] / OPTIMIZER_BYTES["adamw"]
        # an average of the weights that lies beside them stays as it is
        averages = OPTIMIZER_BYTES["adamw"] / LORA_BYTES * self.memory.gradients
        saved = round(share * averages)
        return saved if saved >= WORTH_NAMING * self.memory.total else 0

    @property
    def training(self) -> str:
        if self.fitted is None:
            return ""
        words = self.fitted.words(blocks=self.blocks)
        return f"a step takes {self.fitted.reason()}: {words}"


def make_plan(configuration: Configuration, *, vram_gb: float | None = None) -> Plan:
    """Foresee the run of `configuration`; choose how to fit it into `vram_gb` (10^9 bytes).

    Raises:
        WrongUse, NotComplete: as `qedit pair` does, or a model whose config cannot be had.
    """
    settings = configuration.settings
    vram_bytes = None if vram_gb is None else round(vram_gb * GIGABYTE)
    model = _model_of(settings)
    samples, rejected, found_by = _samples(configuration, model.flavour)
    every = [sample for found in samples.values() for sample in found]
    if not every:
        raise NotComplete("There is no pair to plan for.", "Run `qedit pair`: it says why.")
    trained = [sample for main in configuration.main_datasets() for sample in samples[main.id]]
    way = way_of(settings)
    sample, load = _largest(trained or every, model, settings, way)
    streamed = settings.blocks_to_stream if isinstance(settings.blocks_to_stream, int) else None
    every_rung = ladder(model.sizes, way, streamed=streamed)
    fits = [
        Fit(rung, _memory(model.sizes, load, rung.way, settings))
        for rung in every_rung
        if settings.model_type == "lora" or rung is every_rung[0]
    ]
    plan = Plan(
        pairs={name: len(found) for name, found in samples.items()},
        rejected=rejected,
        found_by=found_by,
        blocks=model.sizes.blocks,
        sample=sample,
        load=load,
        disk=_disk(configuration, samples, model),
        memory=_memory(model.sizes, load, way, settings),
        fits=fits,
        optimizer=settings.optimizer,
        steps=_steps(configuration, samples),
        flops=settings.gradient_accumulation_steps
        * step_flops(model.sizes, load, checkpointing=settings.gradient_checkpointing),
        step_seconds=step_seconds(settings.output_dir),
        vram_bytes=vram_bytes,
        limit_bytes=_limit(settings, vram_bytes),
    )
    if plan.budget_bytes is None:
        return plan
    budget = plan.budget_bytes
    plan.chosen = next((fit for fit in fits if fit.memory.total <= budget), None)
    if plan.chosen is not None and settings.model_type == "lora":
        way = plan.chosen.rung.way
        plan.fitted = fit_into(budget, model.sizes, load, way, streamed=streamed)
    return plan


def foreseen_disk(configuration: Configuration) -> Disk:
    """Return what the run writes to disk; raises as `make_plan` does."""
    model = _model_of(configuration.settings)
    samples, _, _ = _samples(configuration, model.flavour)
    return _disk(configuration, samples, model)


def _disk(configuration: Configuration, samples: dict[str, Sequence[Sample]], model: Model) -> Disk:
    every = [sample for found in samples.values() for sample in found]
    previewed = foreseen_previews(configuration, samples, model.flavour)
    return disk_of(configuration, [*every, *previewed], model, pairs=len(every))


def _limit(settings: Settings, vram_bytes: int | None) -> int | None:
    """Return what the run may take of the device; `memory` is for adapters, as in `train`."""
    if vram_bytes is None or settings.model_type == "full" or not isinstance(settings.memory, int):
        return vram_bytes
    return min(vram_bytes, settings.memory * GIGABYTE)


def _memory(sizes: Dimensions, load: Load, way: Way, settings: Settings) -> Memory:
    """Return the peak of a step. With `model_type` full, float32 masters replace the LoRA."""
    if settings.model_type == "lora":
        return memory_of(sizes, load, way)
    step = memory_of(sizes, load, replace(way, targets="all-linear", rank=0, table=False))
    trained = sizes.parameters()
    masters = LORA_BYTES * trained if way.number_bytes != LORA_BYTES else 0
    return replace(
        step,
        lora=masters,
        optimizer=round(way.trained_bytes * trained),
        gradients=LORA_BYTES * trained,
    )


def _model_of(settings: Settings) -> Model:
    flavour = flavour_of(settings)
    if is_model_local(settings):
        open_checkpoint(settings)
    text = part_config(settings, "text_encoder")
    text = text.get("text_config", text)
    vision = part_config(settings, "processor", "preprocessor_config.json")
    vae = part_config(settings, "vae")
    halvings = len(vae.get("temperal_downsample", (False, True, True)))
    return Model(
        flavour,
        Dimensions.of_config(part_config(settings, "transformer"), zero_cond_t=flavour.zero_cond_t),
        Encoders(
            text_width=text.get("hidden_size", 3584),
            patch=vision.get("patch_size", 14) * vision.get("merge_size", 2),
            channels=vae.get("z_dim", 16),
            factor=2**halvings,
        ),
    )


def _samples(
    configuration: Configuration, flavour: Flavour
) -> tuple[dict[str, Sequence[Sample]], int, str]:
    """Return the samples of every main dataset, how many are rejected, and how that is known."""
    mains = used_main_datasets(configuration)
    try:
        tables = {main.id: read_pairs(configuration, main, flavour) for main in mains}
    except NotComplete:
        samples, rejected = look_ahead(configuration, flavour)
        return dict(samples), rejected, "names and headers"
    rejected = sum(table.manifest["rejected_samples"] for table in tables.values())
    return {name: table.samples for name, table in tables.items()}, rejected, "pairs tables"


def _largest(
    samples: Sequence[Sample], model: Model, settings: Settings, way: Way
) -> tuple[str, Load]:
    """Return the sample whose forward needs most memory, and that forward."""
    loads: dict[tuple[tuple[int, int], ...], tuple[int, str]] = {}
    for sample in samples:
        sizes = (sample.target.size, *(picture.size for picture in sample.references))
        text = text_tokens(sample, model.flavour, encoders=model.encoders)
        loads[sizes] = max(loads.get(sizes, (0, "")), (text, sample.name))
    batch = settings.train_batch_size
    return max(
        ((name, Load(sizes, text, batch)) for sizes, (text, name) in loads.items()),
        key=lambda named: memory_of(model.sizes, named[1], way).total,
    )


def _steps(configuration: Configuration, samples: dict[str, Sequence[Sample]]) -> int:
    settings = configuration.settings
    if not settings.num_train_epochs:
        return settings.max_train_steps or 0
    sources = [Source.of(main, samples[main.id]) for main in configuration.main_datasets()]
    return Order.of(sources, settings).steps_for(settings.num_train_epochs)
