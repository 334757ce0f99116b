"""cache-vae: which latent rows are wanted, which are missing, and in which parts they are made.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa

from ...cache.claims import shared_work
from ...config.configuration import Configuration
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..room import refuse_full_disk
from ..samples import Picture
from ..sharing import say_who_is_at_work, saying_what_is_kept
from ..stage import Outcome, Progress
from ..stores import Shelf, open_stores, shard_named, used_main_datasets, wanted_latents
from ..uses import note_use
from ..wanted import Keys, distinct, pairs_keys

STAGE = "cache-vae"
ROWS_IN_PART = 64
PIXELS_A_LATENT = 8 * 8
BYTES_A_LATENT = 16 * 2  # channels of bfloat16


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
    shard: str | None = None,
) -> Outcome:
    """Bring the latent stores to hold a row for every picture of every sample.

    Args:
        shard: "i/n": do this share of what is missing and no more.

    Raises:
        NotComplete: there are no pairs for these settings, or a picture changed since.
        QeditError: there is no room for what is missing.
    """
    started = time.monotonic()
    share = shard_named(shard) if shard else None
    checkpoint = open_checkpoint(configuration.settings)
    shelf = open_stores(configuration, checkpoint).latents
    wanted, missing = wanted_and_missing(configuration, checkpoint, shelf)
    if share is not None:
        mine = {key: picture for key, picture in missing.items() if share.has(key)}
        wanted, missing = wanted - (len(missing) - len(mine)), mine
    sizes = bytes_of(shelf, missing)
    computed = 0
    if missing and not dry_run:
        refuse_full_disk(sizes, what=f"{len(missing)} latents")
        computed = _fill(
            configuration,
            checkpoint,
            shelf=shelf,
            missing=missing,
            progress=progress,
            device=device,
        )
    if not dry_run:
        note_use(shelf.stores(), configuration)
    return Outcome(
        stage=STAGE,
        wanted=wanted,
        kept=wanted - (len(missing) if dry_run else computed),
        computed=computed,
        failed=0,
        seconds=time.monotonic() - started,
        where=shelf.where(),
        unit="latents",
        facts={"missing": len(missing), "bytes": sum(sizes.values())} if dry_run else {},
    )


def wanted_and_missing(
    configuration: Configuration, checkpoint: Checkpoint, shelf: Shelf
) -> tuple[int, dict[str, Picture]]:
    """How many rows are wanted, and those that are missing, each with a picture to make it of."""
    every: list[Keys] = []
    missing: dict[str, Picture] = {}
    for main in used_main_datasets(configuration):
        table = pairs_keys(configuration, main, checkpoint.flavour)
        latents = table.latents()
        every.append(latents)
        absent = ~shelf.hold(latents.keys)
        there = set(latents.keys.filter(pa.array(absent)).to_pylist())
        for key, picture in wanted_latents(table.samples(latents.rows[absent])).items():
            if key in there:
                missing.setdefault(key, picture)
    return distinct(every), missing


def bytes_of(shelf: Shelf, pictures: Mapping[str, Picture]) -> dict[Path, int]:
    """About how many bytes the rows of `pictures` take, by store."""
    sizes: dict[Path, int] = defaultdict(int)
    for picture in pictures.values():
        pixels = picture.size[0] * picture.size[1]
        sizes[shelf.of(picture.dataset).path] += pixels // PIXELS_A_LATENT * BYTES_A_LATENT
    return sizes


def _fill(
    configuration: Configuration,
    checkpoint: Checkpoint,
    *,
    shelf: Shelf,
    missing: Mapping[str, Picture],
    progress: Progress,
    device: str,
) -> int:
    """Encode what is missing, part by part; the number of rows that were computed here."""
    from .encoding import PictureEncoding

    encoding = PictureEncoding(configuration, checkpoint, device=device)
    by_dataset: dict[str, dict[str, Picture]] = defaultdict(dict)
    for key, picture in missing.items():
        by_dataset[picture.dataset][key] = picture
    computed = 0
    with (
        progress.bar(len(missing), STAGE, unit="picture") as advance,
        saying_what_is_kept(progress, lambda: f"{computed} latents"),
    ):
        for dataset, pictures in by_dataset.items():
            store = shelf.of(dataset)
            with store.adding():
                for keys in shared_work(
                    store.path,
                    parts(pictures),
                    doing=f"qedit {STAGE}",
                    still=shelf.missing,
                    waiting=partial(say_who_is_at_work, progress),
                ):
                    store.add(keys, encoding.rows([pictures[key] for key in keys], advance))
                    computed += len(keys)
    return computed


def parts(pictures: Mapping[str, Picture]) -> Iterator[list[str]]:
    """Keys that are written together: one size each, at most 64, decided by the keys alone."""
    by_size: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key in sorted(pictures):
        by_size[pictures[key].size].append(key)
    for size in sorted(by_size):
        keys = by_size[size]
        for start in range(0, len(keys), ROWS_IN_PART):
            yield keys[start : start + ROWS_IN_PART]
