"""cache-vae: which latent rows are wanted, which are missing, and in which parts they are made.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ...config.configuration import Configuration
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..samples import Picture
from ..stage import Outcome, Progress
from ..stores import Shelf, open_stores, samples_of, wanted_latents

STAGE = "cache-vae"
ROWS_IN_PART = 64


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
) -> Outcome:
    """Bring the latent stores to hold a row for every picture of every sample.

    Raises:
        NotComplete: there are no pairs for these settings, or a picture changed since.
    """
    started = time.monotonic()
    checkpoint = open_checkpoint(configuration.settings)
    wanted = wanted_latents(samples_of(configuration, checkpoint))
    shelf = open_stores(configuration, checkpoint).latents
    missing = {key: picture for key, picture in wanted.items() if key not in shelf}
    computed = 0
    if missing and not dry_run:
        computed = _fill(
            configuration,
            checkpoint,
            shelf=shelf,
            missing=missing,
            progress=progress,
            device=device,
        )
    return Outcome(
        stage=STAGE,
        wanted=len(wanted),
        kept=len(wanted) - (len(missing) if dry_run else computed),
        computed=computed,
        failed=0,
        seconds=time.monotonic() - started,
        where=shelf.where(),
        unit="latents",
        facts={"missing": len(missing)} if dry_run else {},
    )


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
    with progress.bar(len(missing), STAGE, unit="picture") as advance:
        for dataset, pictures in by_dataset.items():
            store = shelf.of(dataset)
            with store.writing():
                # another process may have added some while this one waited for the lock
                still = store.missing(pictures)
                advance(len(pictures) - len(still))
                for keys in parts({key: pictures[key] for key in still}):
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
