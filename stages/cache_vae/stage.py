"""cache-vae: bring the stores of latents and of mask weights to hold all that is wanted.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ...cache.files.free_space import refuse_full_disk
from ...cache.store.dropping import pass_over_torn
from ...cache.store.store_set import StoreSet
from ...config.configuration import Configuration
from ..encoding.acceptance import OnReject
from ..encoding.device_options import Ways
from ..encoding.devices import on_each_device
from ..encoding.reference_sets import BYTES_A_TOKEN, ReferenceSet, find_wanted
from ..encoding.run_on_device import Filled, Work, fill
from ..encoding.speed_log import facts_of
from ..encoding.work_split import Shard, shard_named
from ..estimates.speed import foreseen, remember_rate
from ..samples.sample import Picture
from ..stage import Outcome, Progress
from ..stores.pins import begin_use, keep_use, note_use
from ..stores.previewed import keys_only_previewed
from ..stores.run import Run
from .one_file import files_of, latent_bytes, parts_of
from .wanted_pictures import WantedPictures, find_pictures

STAGE = "cache-vae"


def run(
    run: Run,
    progress: Progress,
    *,
    dry_run: bool = False,
    ways: Ways | None = None,
    shard: str | None = None,
    on_reject: OnReject = "fail",
    max_rejected: int = 0,
    retry_rejected: bool = False,
) -> Outcome:
    """Bring the stores to hold a row for every picture and every mask of every sample.

    Args:
        ways: how, on which devices, with how many workers.
        shard: "i/n": do this share of what is missing and no more.
        on_reject, max_rejected, retry_rejected: as in `pair`, for rows that are NaN. A share
            tries its own again.

    Raises:
        NotComplete: there are no pairs for these settings, a picture changed since, or rows
            were rejected and that is not accepted.
        QeditError: there is no room for what is missing.
    """
    started = time.monotonic()
    share = shard_named(shard) if shard else None
    ways = ways or Ways()
    configuration, stores = run.configuration, run.stores
    kept = (*stores.latents.stores(), *stores.weights.stores())
    if not dry_run:
        previewed = keys_only_previewed(run)
        keep_use(kept, configuration, also=previewed)
    torn = pass_over_torn(kept, drops=not dry_run)
    wanted = find_pictures(run)
    tried, theirs = (share if retry_rejected else None), 0
    if retry_rejected:  # of this share: the others try theirs again, who may be at it just now
        rejected = wanted.rejections(stores, tried)
        theirs = len(rejected.others)
        if not dry_run:
            rejected.forget()
            wanted = find_pictures(run)
    mine = wanted.of_share(share)
    count = wanted.count() - (wanted.missing - mine.missing) - theirs
    sizes = bytes_of(stores.latents, mine.latents)
    filled = Filled()
    if mine.missing and not dry_run:
        refuse_full_disk(sizes, what=f"{mine.missing} latents")
        previewed = keys_only_previewed(run)
        begin_use(kept, configuration, also=previewed)
        filled = on_each_device(ways, partial(fill_on, share=share), configuration, progress)
    rejections = wanted.rejections(stores, tried)
    if not dry_run:
        previewed = keys_only_previewed(run)
        note_use(kept, configuration, also=previewed)
        rejections.settle(stage=STAGE, on_reject=on_reject, max_rejected=max_rejected)
    computed = filled.rows["latents"] + filled.rows["weights"]
    remember_rate(
        configuration,
        stores.latents,
        devices=ways.where,
        count_bytes=sum(sizes.values()) * computed // max(1, mine.missing),
        seconds=sum(filled.seconds.values()) / max(1, len(ways.devices)),
    )
    failed = len(rejections.places)
    again = failed if dry_run and retry_rejected else 0
    return Outcome(
        stage=STAGE,
        wanted=count,
        kept=count - (mine.missing if dry_run else computed) - failed,
        computed=computed,
        failed=failed - again,
        seconds=time.monotonic() - started,
        where=stores.latents.where(),
        unit="latents",
        facts=facts_of(filled.seconds)
        | (
            foreseen(
                configuration,
                stores.latents,
                devices=ways.where,
                missing=mine.missing + again,
                count_bytes=sum(sizes.values()),
            )
            if dry_run
            else {}
        ),
        lines=(*torn, *rejections.lines()),
    )


def bytes_of(store_set: StoreSet, pictures: Mapping[str, Picture]) -> dict[Path, int]:
    """About how many bytes the rows of `pictures` take, by store."""
    sizes: dict[Path, int] = defaultdict(int)
    for picture in pictures.values():
        sizes[store_set.of(picture.dataset).path] += latent_bytes(picture.size)
    return sizes


def fill_on(
    configuration: Configuration, progress: Progress, ways: Ways, *, share: Shard | None
) -> Filled:
    """Make what is missing on one device: the weights of masks, then the latents."""
    run = Run(configuration)
    wanted = find_pictures(run).of_share(share)
    filled = Filled()
    if wanted.weights:
        filled.add(fill(masks_work(run, wanted), progress, ways))
    if wanted.latents:
        filled.add(fill(pictures_work(run, wanted, ways), progress, ways))
    return filled


def pictures_work(run: Run, wanted: WantedPictures, ways: Ways) -> Work:
    """The latents that `wanted` lacks."""
    from ..encoding.batch_size import BatchSize
    from ..encoding.spool import Spool
    from .encoding import MOST_PICTURES, PIXELS_WHERE_NOTHING_IS_KNOWN, SHOWN, PictureEncoding

    configuration, stores = run.configuration, run.stores
    store_sets, spool, shown = {"latents": stores.latents}, None, {}
    if ways.spool:
        sets = find_wanted(run).work
        latents = sum(bytes_of(stores.latents, wanted.latents).values())
        spool = Spool(
            ways.spool,
            [dataset.id for dataset in configuration.datasets],
            processes=max(1, len(ways.devices)),
            spared_bytes=latents + sum(BYTES_A_TOKEN * one.tokens for one in sets.values()),
        )
        store_sets[SHOWN] = spool.store_set
        shown = shown_next(sets)
    return Work(
        stage=STAGE,
        unit="picture",
        rows="latents",
        count=len({picture.digest for picture in wanted.latents.values()}),
        parts=parts_of(wanted.latents),
        items_of=partial(files_of, wanted.latents),
        claimed_in=stores.latents,
        store_sets=store_sets,
        still=still_missing(stores.latents),
        encoding=PictureEncoding(
            configuration, run.checkpoint, device=ways.device, spool=spool, shown=shown
        ),
        batch_size=BatchSize(
            ways.vae_batch_size, most=MOST_PICTURES, budget=PIXELS_WHERE_NOTHING_IS_KNOWN
        ),
    )


def masks_work(run: Run, wanted: WantedPictures) -> Work:
    """The weights that `wanted` lacks."""
    from ..encoding.batch_size import BatchSize
    from .masks import MaskReading

    return Work(
        stage=STAGE,
        unit="mask",
        rows="rows of weights",
        count=len(wanted.weights),
        parts=parts_of(wanted.weights),
        items_of=lambda keys: [wanted.weights[key] for key in keys],
        claimed_in=run.stores.weights,
        store_sets={"weights": run.stores.weights},
        still=still_missing(run.stores.weights),
        encoding=MaskReading(run.configuration),
        batch_size=BatchSize(1, most=1, budget=1),
    )


def shown_next(sets: Mapping[str, ReferenceSet]) -> dict[str, list[Picture]]:
    """By latent key, the references that `cache-embeds` will want, each picture once."""
    shown: dict[str, dict[tuple[object, ...], Picture]] = defaultdict(dict)
    for one in sets.values():
        for picture in one.sample.references:
            shown[picture.latent_key][picture.box, picture.vl_size] = picture
    return {key: list(pictures.values()) for key, pictures in shown.items()}


def still_missing(store_set: StoreSet) -> Callable[[Sequence[str]], list[str]]:
    """Which of some keys have no row in `store_set` and were not rejected, as it is now."""

    def still(keys: Sequence[str]) -> list[str]:
        rejected = store_set.rejected()
        return [key for key in store_set.missing(keys) if key not in rejected]

    return still
