"""cache-embeds: bring the stores of image prefixes and text tails to hold all that is wanted.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial

from ...cache.files.free_space import refuse_full_disk
from ...cache.store.dropping import pass_over_torn
from ...config.configuration import Configuration
from ..encoding.acceptance import OnReject, Rejections
from ..encoding.device_options import Ways
from ..encoding.devices import on_each_device
from ..encoding.reference_sets import (
    Count,
    ReferenceSet,
    Wanted,
    bytes_of,
    find_wanted,
    missing_rows,
    parts_of,
    pass_on_rejections,
    still_missing,
)
from ..encoding.run_on_device import Filled, Work, fill
from ..encoding.speed_log import facts_of
from ..encoding.work_split import Shard, shard_named
from ..estimates.speed import foreseen, remember_rate
from ..models.checkpoint.checkpoint import Checkpoint
from ..stage import Outcome, Progress
from ..stores.pins import begin_use, keep_use, note_use
from ..stores.previewed import keys_only_previewed
from ..stores.run import Run
from ..stores.run_stores import RunStores

STAGE = "cache-embeds"


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
    """Bring the embed stores to hold every image prefix and every text tail.

    Args:
        ways: how, on which devices, with how many workers.
        shard: "i/n": do this share of the reference sets with anything missing and no more.
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
    kept = (*stores.prefixes.stores(), *stores.tails.stores())
    if not dry_run:
        previewed = keys_only_previewed(run)
        keep_use(kept, configuration, also=previewed)
    torn = pass_over_torn(kept, drops=not dry_run)
    wanted = find_wanted(run)
    tried, theirs = (share if retry_rejected else None), Count()
    if retry_rejected:  # of this share: the others try theirs again, who may be at it just now
        rejected = _rejections(wanted, stores, tried)
        prefixes = stores.prefixes.rejected().keys() & rejected.others
        theirs = Count(len(prefixes), len(rejected.others - prefixes))
        if not dry_run:
            rejected.forget()
            wanted = find_wanted(run)
    barren = _shared(wanted.barren, tried)
    theirs.tails += _tails(wanted.barren) - _tails(barren)
    count, missing = wanted.count(), missing_rows(wanted.work, stores)
    work = _shared(wanted.work, share)
    mine = missing_rows(work, stores)
    count.prefixes -= missing.prefixes - mine.prefixes + theirs.prefixes
    count.tails -= missing.tails - mine.tails + theirs.tails
    sizes = bytes_of(stores, work, channels=_channels(run.checkpoint))
    filled = Filled()
    if not dry_run:
        pass_on_rejections(barren, stores)
    if work and not dry_run:
        refuse_full_disk(sizes, what=f"{mine.rows} embeds")
        previewed = keys_only_previewed(run)
        begin_use(kept, configuration, also=previewed)
        filled = on_each_device(ways, partial(fill_on, share=share), configuration, progress)
    rejections = _rejections(wanted, stores, tried)
    if not dry_run:
        previewed = keys_only_previewed(run)
        note_use(kept, configuration, also=previewed)
        rejections.settle(stage=STAGE, on_reject=on_reject, max_rejected=max_rejected)
    computed = Count(filled.rows["prefixes"], filled.rows["tails"])
    remember_rate(
        configuration,
        stores.prefixes,
        devices=ways.where,
        count_bytes=sum(sizes.values()) * computed.rows // max(1, mine.rows),
        seconds=sum(filled.seconds.values()) / max(1, len(ways.devices)),
    )
    failed = len(rejections.places)
    if dry_run:
        failed += _tails(barren)
    again = failed if dry_run and retry_rejected else 0
    return Outcome(
        stage=STAGE,
        wanted=count.rows,
        kept=count.rows - (mine if dry_run else computed).rows - failed,
        computed=computed.rows,
        failed=failed - again,
        seconds=time.monotonic() - started,
        where=f"{stores.prefixes.where()}, {stores.tails.where()}",
        unit="embeds",
        facts={
            "prefixes": count.prefixes,
            "prefixes_computed": computed.prefixes,
            "tails": count.tails,
            "tails_computed": computed.tails,
            **facts_of(filled.seconds),
        }
        | (
            foreseen(
                configuration,
                stores.prefixes,
                devices=ways.where,
                missing=mine.rows + again,
                count_bytes=sum(sizes.values()),
            )
            if dry_run
            else {}
        ),
        lines=(*torn, *rejections.lines()),
    )


def fill_on(
    configuration: Configuration, progress: Progress, ways: Ways, *, share: Shard | None
) -> Filled:
    """Encode what is missing on one device."""
    work = sets_work(configuration, ways, share=share)
    return fill(work, progress, ways) if work else Filled()


def sets_work(configuration: Configuration, ways: Ways, *, share: Shard | None) -> Work | None:
    """The reference sets of which anything is missing; None where nothing is."""
    from ..encoding.batch_size import BatchSize
    from ..encoding.spool import Spool
    from .encoding import MOST_SETS, TOKENS_WHERE_NOTHING_IS_KNOWN, ReferenceEncoding

    run = Run(configuration)
    stores = run.stores
    sets = _shared(find_wanted(run).work, share)
    if not sets:
        return None
    datasets = [dataset.id for dataset in configuration.datasets]
    spool = Spool(ways.spool, datasets) if ways.spool else None
    return Work(
        stage=STAGE,
        unit="reference set",
        rows="embeds",
        count=len(sets),
        parts=parts_of(sets),
        items_of=lambda keys: [sets[key] for key in keys],
        claimed_in=stores.prefixes,
        store_sets={"prefixes": stores.prefixes, "tails": stores.tails},
        still=partial(still_missing, stores, sets),
        encoding=ReferenceEncoding(configuration, run.checkpoint, device=ways.device, spool=spool),
        batch_size=BatchSize(
            ways.text_batch_size, most=MOST_SETS, budget=TOKENS_WHERE_NOTHING_IS_KNOWN
        ),
    )


def _rejections(wanted: Wanted, stores: RunStores, share: Shard | None) -> Rejections:
    rejections = Rejections(share)
    for (table, prefixes), (_, tails) in zip(wanted.prefixes, wanted.tails, strict=True):
        rejections.look(stores.prefixes, table, prefixes)
        rejections.look(stores.tails, table, tails, prefixes=prefixes)
    return rejections


def _tails(sets: Mapping[str, ReferenceSet]) -> int:
    return sum(len(one.tails) for one in sets.values())


def _shared(work: Mapping[str, ReferenceSet], share: Shard | None) -> dict[str, ReferenceSet]:
    return {key: one for key, one in work.items() if share is None or share.has(key)}


def _channels(checkpoint: Checkpoint) -> int:
    """The width of the language model's states, which the rows hold."""
    config = json.loads((checkpoint.text_encoder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("hidden_size") or config["text_config"]["hidden_size"])
