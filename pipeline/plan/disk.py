"""Foresee what a run writes to disk, and compare it with the free space of each disk."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ...cache.errors import QeditError
from ...cache.files.free_space import SPARE_BYTES, nearest_there
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...config.settings import Settings
from ...stages.estimates.disk import (
    Encoders,
    Rows,
    latent_rows,
    mask_rows,
    pair_rows,
    prefix_rows,
    tail_rows,
)
from ...stages.estimates.memory import way_of
from ...stages.frozen_base.modulation_table import base_folder, lowest_sigma, subset_of, wants_table
from ...stages.frozen_base.quantized import bases_in, quantized_recipe, wants_quantized
from ...stages.models.flavours import Flavour
from ...stages.models.memory_estimate.dimensions import Dimensions, full_parameters, lora_parameters
from ...stages.models.memory_estimate.memory import (
    LORA_BYTES,
    OPTIMIZER_BYTES,
    base_bytes,
    table_row_bytes,
)
from ...stages.models.timesteps import every_timestep
from ...stages.samples.sample import Sample
from ...stages.samples.table import captions_beside, used_main_datasets

NEARLY = 0.05
PUBLISHED_BYTES = 2  # of each number of a transformer that a run leaves, in bfloat16


@dataclass(frozen=True)
class Model:
    """The sizes that a checkpoint's config files say, and how it is to be trained."""

    flavour: Flavour
    sizes: Dimensions
    encoders: Encoders


class Part(NamedTuple):
    """The share of one folder in a kind of result: its bytes when all is there, and now."""

    folder: Path
    count_bytes: int
    there_bytes: int


@dataclass(frozen=True)
class Kind:
    """One kind of result: how many of them, and where they lie."""

    what: str
    count: int
    parts: tuple[Part, ...]

    @property
    def count_bytes(self) -> int:
        return sum(part.count_bytes for part in self.parts)

    @property
    def there_bytes(self) -> int:
        return sum(part.there_bytes for part in self.parts)


class Room(NamedTuple):
    """One disk: the folder on it that will grow most, the bytes to come, and the bytes free."""

    folder: Path
    wanted_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Disk:
    """Every kind of result, and every disk that they lie on."""

    kinds: tuple[Kind, ...]
    room: tuple[Room, ...]

    @property
    def total_bytes(self) -> int:
        return sum(kind.count_bytes for kind in self.kinds)

    @property
    def full(self) -> list[Path]:
        """Return folders on disks that have no room for what is to come."""
        return [room.folder for room in self.room if room.wanted_bytes > room.free_bytes]


def disk_of(
    configuration: Configuration,
    samples: Sequence[Sample],
    model: Model,
    *,
    pairs: int,
) -> Disk:
    """Foresee the files of a run; compressed caches (`cache_compression`) take less.

    Args:
        samples: the pairs, and after them what has rows for previews alone.
        pairs: how many of them are pairs.
    """
    settings = configuration.settings
    mains = used_main_datasets(configuration)
    pictures = [dataset for main in mains for dataset in (main, *configuration.references_of(main))]
    beside = captions_beside(settings)

    def of(names: Collection[str], count: int | None = None) -> list[Sample]:
        return [sample for sample in samples[:count] if sample.dataset in names]

    kinds = [
        _kind("pairs", mains, configuration.pairs_folder, lambda own: pair_rows(of(own, pairs))),
        _kind(
            "latents",
            pictures,
            configuration.vae_folder,
            partial(latent_rows, samples, model.encoders),
        ),
        _kind(
            "image prefixes",
            mains,
            configuration.image_embeds_folder,
            lambda own: prefix_rows(of(own), model.flavour, model.encoders),
        ),
        _kind(
            "text tails",
            mains,
            configuration.text_embeds_folder,
            lambda own: tail_rows(of(own), beside, model.encoders),
        ),
    ]
    masks = [mask for main in mains if (mask := configuration.mask_of(main))]
    if masks:
        weights = partial(mask_rows, samples, model.encoders)
        folder = configuration.vae_folder
        # latents lie in the same folders, and are counted with them
        kinds.append(
            _kind("mask weights", masks, folder, lambda own: weights(datasets=own), there=0)
        )
    kinds += [*_base(settings, model.sizes), *_results(configuration, model.sizes)]
    return Disk(tuple(kinds), tuple(_room(kinds)))


def refuse_full_disks(disk: Disk) -> None:
    """Raise where a disk has no room for what a run is still to write there.

    Raises:
        QeditError: names each such disk by a folder on it; nothing has been written.
    """
    full = [room for room in disk.room if room.wanted_bytes + SPARE_BYTES > room.free_bytes]
    if full:
        lines = (
            f"at {room.folder}: {room.wanted_bytes / 1e9:.1f} GB to come, "
            f"{room.free_bytes / 1e9:.1f} GB free"
            for room in full
        )
        raise QeditError(
            f"The disk has no room for all that this run writes: {'; '.join(lines)}.",
            "Make room, or choose folders on another disk: `cache_dir`, `output_dir`. `qedit plan` "
            "shows what takes how much, `qedit gc` what of the caches is no longer needed.",
        )


def _base(settings: Settings, sizes: Dimensions) -> Iterator[Kind]:
    """Foresee what `cache-base` writes: the modulation table, and the base in few bits."""
    folder, tabulated = base_folder(settings), wants_table(settings)
    bases = {base.folder: base.recipe for base in bases_in(folder)}
    if tabulated:
        rows = len(every_timestep(lowest_sigma=lowest_sigma(settings)))
        there_bytes = _bytes_in(folder) - sum(map(_bytes_in, bases))
        part = Part(folder, rows * table_row_bytes(sizes), there_bytes)
        yield Kind("modulation table", rows, (part,))
    if wants_quantized(settings):
        wanted = quantized_recipe("", settings)  # the model's digest is not known here
        there_bytes = sum(
            _bytes_in(path) for path, own in bases.items() if {**own, "model": ""} == wanted
        )
        count_bytes = sum(base_bytes(sizes, way_of(settings)))
        yield Kind("quantised base", 1, (Part(folder, count_bytes, there_bytes),))


def _kind(
    what: str,
    datasets: Iterable[Dataset],
    folder_of: Callable[[Dataset], Path],
    rows_of: Callable[[Collection[str]], Rows],
    *,
    there: int | None = None,
) -> Kind:
    """Return the kind of rows that `rows_of` counts, given the ids of datasets in one folder.

    Args:
        there: bytes that are there; None: all in the folders.
    """
    folders: dict[Path, set[str]] = defaultdict(set)
    for dataset in datasets:
        folders[folder_of(dataset)].add(dataset.id)
    rows = {folder: rows_of(names) for folder, names in folders.items()}
    parts = (
        Part(folder, own.count_bytes, _bytes_in(folder) if there is None else there)
        for folder, own in rows.items()
    )
    return Kind(what, sum(own.how_many for own in rows.values()), tuple(parts))


def _results(configuration: Configuration, sizes: Dimensions) -> Iterator[Kind]:
    """Foresee `output_dir`: checkpoints, and with `model_type` full whole transformers."""
    settings = configuration.settings
    is_full = settings.model_type == "full"
    if is_full:
        trained = full_parameters(sizes, subset_of(settings))
    else:
        trained = lora_parameters(sizes, settings.lora_target_modules, rank=settings.lora_rank)
    each = LORA_BYTES * (2 if settings.use_ema else 1) + OPTIMIZER_BYTES[settings.optimizer]
    kept, where = settings.checkpoints_total_limit, settings.output_dir
    if settings.max_train_steps:
        kept = min(kept, -(-settings.max_train_steps // settings.checkpoint_step_interval))
    there = map(_bytes_in, where.glob("checkpoint-*") if is_full else [where])
    yield Kind("checkpoints", kept, (Part(where, round(kept * each * trained), sum(there)),))
    if not is_full:
        return
    places = ["", "ema"] if settings.use_ema else [""]
    there_bytes = sum(_bytes_in(where / place / "transformer") for place in places)
    if configuration.eval_datasets() and settings.keep_best:
        there_bytes += _bytes_in(where / "best" / "transformer")
        places += ["best", "best"]  # the one before stays until a better one is whole
    count_bytes = len(places) * PUBLISHED_BYTES * sizes.parameters()
    yield Kind("transformers", len(places), (Part(where, count_bytes, there_bytes),))


def _bytes_in(folder: Path) -> int:
    return sum(
        (Path(where) / name).lstat().st_size
        for where, _, names in os.walk(folder)
        for name in names
    )


def _room(kinds: Iterable[Kind]) -> Iterator[Room]:
    by_disk: dict[int, Counter[Path]] = defaultdict(Counter)
    for part in (part for kind in kinds for part in kind.parts):
        # an estimate that is nearly reached is taken for reached
        to_come = max(0, part.count_bytes - part.there_bytes)
        to_come *= to_come > NEARLY * part.count_bytes
        by_disk[os.stat(nearest_there(part.folder)).st_dev][part.folder] += to_come
    for to_come_at in by_disk.values():
        ((folder, _),) = to_come_at.most_common(1)
        free = shutil.disk_usage(nearest_there(folder)).free
        yield Room(folder, to_come_at.total(), free)
