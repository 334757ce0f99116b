"""What a run writes to disk, kind by kind, against the room there is."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...config.configuration import Configuration
from ...stages.estimates.disk import Encoders, latent_rows, pairs_bytes, prefix_rows, tail_rows
from ...stages.frozen_base.folder import base_folder
from ...stages.frozen_base.modulation_table import lowest_sigma, subset_of, wants_table
from ...stages.models.flavours import Flavour
from ...stages.models.memory_estimate.dimensions import Dimensions, full_parameters, lora_parameters
from ...stages.models.memory_estimate.memory import LORA_BYTES, OPTIMIZER_BYTES, table_row_bytes
from ...stages.models.timesteps import every_timestep
from ...stages.samples.sample import Sample
from ...stages.samples.table import captions_beside, used_main_datasets

PUBLISHED_BYTES = 2  # of each number of a transformer that a run leaves, in bfloat16


@dataclass(frozen=True)
class Kind:
    """One kind of result: how many, their bytes, the (first) folder, and what lies there now."""

    what: str
    count: int
    count_bytes: int
    folder: Path
    there_bytes: int


@dataclass(frozen=True)
class Disk:
    """Every kind, and by disk (a folder on it) what is still to be written and what is free."""

    kinds: tuple[Kind, ...]
    room: tuple[tuple[Path, int, int], ...]

    @property
    def total_bytes(self) -> int:
        return sum(kind.count_bytes for kind in self.kinds)

    @property
    def full(self) -> list[Path]:
        """Folders of disks that cannot take what is to come."""
        return [folder for folder, wanted, free in self.room if wanted > free]


def disk_of(
    configuration: Configuration,
    samples: Sequence[Sample],
    flavour: Flavour,
    encoders: Encoders,
    sizes: Dimensions,
    *,
    pairs: int,
) -> Disk:
    """Foresee the files of a run; compressed caches (`cache_compression`) take less.

    Args:
        samples: the pairs, and after them what has rows for previews alone.
        pairs: how many of them are pairs.
    """
    settings = configuration.settings
    latents = latent_rows(samples, encoders)
    prefixes = prefix_rows(samples, flavour, encoders)
    tails = tail_rows(samples, captions_beside(settings), encoders)
    mains = used_main_datasets(configuration)
    pictures = [one for main in mains for one in (main, *configuration.references_of(main))]
    kinds = [
        _kind("pairs", pairs, pairs_bytes(samples[:pairs]), map(configuration.pairs_folder, mains)),
        _kind("latents", *latents, map(configuration.vae_folder, pictures)),
        _kind("image prefixes", *prefixes, map(configuration.image_embeds_folder, mains)),
        _kind("text tails", *tails, map(configuration.text_embeds_folder, mains)),
    ]
    if wants_table(settings):
        rows = len(every_timestep(lowest_sigma=lowest_sigma(settings)))
        table = rows * table_row_bytes(sizes)
        kinds.append(_kind("modulation table", rows, table, [base_folder(settings)]))
    kinds += _results(configuration, sizes)
    return Disk(tuple(kinds), tuple(_room(kinds)))


def _results(configuration: Configuration, sizes: Dimensions) -> Iterator[Kind]:
    """What lies in `output_dir`: checkpoints, and with `model_type` full whole transformers."""
    settings = configuration.settings
    is_full = settings.model_type == "full"
    if is_full:
        trained = full_parameters(sizes, subset_of(settings))
    else:
        trained = lora_parameters(sizes, settings.lora_target_modules, rank=settings.lora_rank)
    each = LORA_BYTES * (2 if settings.use_ema else 1) + OPTIMIZER_BYTES[settings.optimizer]
    kept, where = settings.checkpoints_total_limit, settings.output_dir
    count_bytes = round(kept * each * trained)
    there = where.glob("checkpoint-*") if is_full else [where]
    yield _kind("checkpoints", kept, count_bytes, there, within=where)
    if not is_full:
        return
    places = ["", "ema"] if settings.use_ema else [""]
    if configuration.eval_datasets() and settings.keep_best:
        places += ["best", "best"]  # the one before stays until a better one is whole
    count_bytes = len(places) * PUBLISHED_BYTES * sizes.parameters()
    folders = [where / place / "transformer" for place in places]
    yield _kind("transformers", len(places), count_bytes, folders, within=where)


def _kind(
    what: str,
    count: int,
    count_bytes: int,
    folders: Iterable[Path],
    *,
    within: Path | None = None,
) -> Kind:
    distinct = list(dict.fromkeys(folders))
    there = sum(_bytes_in(folder) for folder in distinct)
    return Kind(what, count, count_bytes, within or distinct[0], there)


def _bytes_in(folder: Path) -> int:
    return sum(
        (Path(where) / name).lstat().st_size
        for where, _, names in os.walk(folder)
        for name in names
    )


def _room(kinds: Sequence[Kind]) -> list[tuple[Path, int, int]]:
    by_disk: dict[int, list[Kind]] = defaultdict(list)
    for kind in kinds:
        by_disk[os.stat(_nearest(kind.folder)).st_dev].append(kind)
    room = []
    for on_disk in by_disk.values():
        wanted = sum(max(0, kind.count_bytes - kind.there_bytes) for kind in on_disk)
        folder = on_disk[0].folder
        room.append((folder, wanted, shutil.disk_usage(_nearest(folder)).free))
    return room


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
