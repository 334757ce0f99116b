"""cache-embeds: which image prefixes and text tails are wanted, and in which parts they are made.

The null prompt is one more tail of every reference set. Tails are run on the key-value cache
of their prefix, so a new caption costs its own few tokens on disk and no second prefix row.
Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ...cache.claims import shared_work
from ...config.configuration import Configuration
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..room import refuse_full_disk
from ..samples import Picture, Sample
from ..sharing import say_who_is_at_work, saying_what_is_kept
from ..stage import Outcome, Progress
from ..stores import (
    RunStores,
    add_missing,
    captions_beside,
    open_stores,
    shard_named,
    used_main_datasets,
)
from ..uses import note_use
from ..wanted import Keys, distinct, pairs_keys

STAGE = "cache-embeds"
SETS_IN_BATCH = 64
PIXELS_A_TOKEN = 28 * 28
# Only for estimates:
TOKENS_A_PICTURE = 8
TOKENS_A_TAIL = 12
LETTERS_A_TOKEN = 3


@dataclass(slots=True)
class ReferenceSet:
    """One ordered set of references, and the captions whose tails follow it (by tail key)."""

    sample: Sample
    tails: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Count:
    """How many rows of each kind."""

    prefixes: int = 0
    tails: int = 0

    @property
    def rows(self) -> int:
        return self.prefixes + self.tails


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
    shard: str | None = None,
) -> Outcome:
    """Bring the embed stores to hold every image prefix and every text tail.

    Args:
        shard: "i/n": do this share of the reference sets with anything missing and no more.

    Raises:
        NotComplete: there are no pairs for these settings, or a picture changed since.
        QeditError: there is no room for what is missing.
    """
    started = time.monotonic()
    share = shard_named(shard) if shard else None
    checkpoint = open_checkpoint(configuration.settings)
    stores = open_stores(configuration, checkpoint)
    wanted, work = wanted_and_work(configuration, checkpoint, stores)
    missing = missing_rows(work, stores)
    if share is not None:
        work = {key: one for key, one in work.items() if share.has(key)}
        mine = missing_rows(work, stores)
        wanted.prefixes -= missing.prefixes - mine.prefixes
        wanted.tails -= missing.tails - mine.tails
        missing = mine
    sizes = bytes_of(stores, work, channels=_channels(checkpoint))
    computed = Count()
    if work and not dry_run:
        refuse_full_disk(sizes, what=f"{missing.rows} embeds")
        computed = _fill(
            configuration, checkpoint, stores=stores, work=work, progress=progress, device=device
        )
    if not dry_run:
        note_use((*stores.prefixes.stores(), *stores.tails.stores()), configuration)
    return Outcome(
        stage=STAGE,
        wanted=wanted.rows,
        kept=wanted.rows - (missing if dry_run else computed).rows,
        computed=computed.rows,
        failed=0,
        seconds=time.monotonic() - started,
        where=f"{stores.prefixes.where()}, {stores.tails.where()}",
        unit="embeds",
        facts={
            "prefixes": wanted.prefixes,
            "prefixes_computed": computed.prefixes,
            "tails": wanted.tails,
            "tails_computed": computed.tails,
        }
        | ({"missing": missing.rows, "bytes": sum(sizes.values())} if dry_run else {}),
    )


def wanted_and_work(
    configuration: Configuration, checkpoint: Checkpoint, stores: RunStores
) -> tuple[Count, dict[str, ReferenceSet]]:
    """How many rows are wanted, and the reference sets of which anything is missing."""
    beside = captions_beside(configuration.settings)
    prefixes: list[Keys] = []
    tails: list[Keys] = []
    samples: list[Sample] = []
    for main in used_main_datasets(configuration):
        table = pairs_keys(configuration, main, checkpoint.flavour)
        prefixes.append(table.prefixes)
        tails.append(table.tails(beside))
        absent = [
            keys.rows[~shelf.hold(keys.keys)]
            for keys, shelf in ((prefixes[-1], stores.prefixes), (tails[-1], stores.tails))
        ]
        samples += table.samples(np.concatenate(absent))
    work = missing_of(reference_sets(samples, beside), stores)
    return Count(distinct(prefixes), distinct(tails)), work


def missing_rows(work: Mapping[str, ReferenceSet], stores: RunStores) -> Count:
    """How many rows of `work` are to be computed."""
    return Count(
        sum(key not in stores.prefixes for key in work),
        sum(len(one.tails) for one in work.values()),
    )


def bytes_of(
    stores: RunStores, work: Mapping[str, ReferenceSet], *, channels: int
) -> dict[Path, int]:
    """About how many bytes the missing rows take, by store."""
    sizes: dict[Path, int] = defaultdict(int)
    for key, one in work.items():
        dataset = one.sample.dataset
        if key not in stores.prefixes:
            tokens = sum(_tokens(picture) for picture in one.sample.references)
            sizes[stores.prefixes.of(dataset).path] += 2 * channels * tokens
        letters = sum(len(text) for text in one.tails.values())
        tokens = letters // LETTERS_A_TOKEN + TOKENS_A_TAIL * len(one.tails)
        sizes[stores.tails.of(dataset).path] += 2 * channels * tokens
    return sizes


def _tokens(picture: Picture) -> int:
    assert picture.vl_size is not None, "references always have one"
    return picture.vl_size[0] * picture.vl_size[1] // PIXELS_A_TOKEN + TOKENS_A_PICTURE


def _channels(checkpoint: Checkpoint) -> int:
    """The width of the language model's states, which the rows hold."""
    config = json.loads((checkpoint.text_encoder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("hidden_size") or config["text_config"]["hidden_size"])


def reference_sets(samples: Iterable[Sample], beside: Iterable[str]) -> dict[str, ReferenceSet]:
    """Every distinct reference set by prefix key, with the tails wanted after it."""
    also = tuple(beside)
    sets: dict[str, ReferenceSet] = {}
    for sample in samples:
        one = sets.setdefault(sample.prefix_key, ReferenceSet(sample))
        for caption in (*sample.captions, *also):
            one.tails.setdefault(sample.tail_key(caption), caption)
    return sets


def missing_of(sets: Mapping[str, ReferenceSet], stores: RunStores) -> dict[str, ReferenceSet]:
    """The sets that need the encoder, each with its missing tails only."""
    work = {}
    for key, one in sets.items():
        tails = {name: text for name, text in one.tails.items() if name not in stores.tails}
        if tails or key not in stores.prefixes:
            work[key] = ReferenceSet(one.sample, tails)
    return work


def _fill(
    configuration: Configuration,
    checkpoint: Checkpoint,
    *,
    stores: RunStores,
    work: Mapping[str, ReferenceSet],
    progress: Progress,
    device: str,
) -> Count:
    """Encode what is missing, part by part; the rows that were computed here."""
    from .encoding import ReferenceEncoding

    encoding = ReferenceEncoding(configuration, checkpoint, device=device)
    by_dataset: dict[str, dict[str, ReferenceSet]] = defaultdict(dict)
    for key, one in work.items():
        by_dataset[one.sample.dataset][key] = one
    computed = Count()
    with (
        progress.bar(len(work), STAGE, unit="reference set") as advance,
        saying_what_is_kept(progress, lambda: f"{computed.rows} embeds"),
    ):
        for dataset, sets in by_dataset.items():
            prefixes, tails = stores.prefixes.of(dataset), stores.tails.of(dataset)
            with prefixes.adding(), tails.adding():
                for keys in shared_work(
                    prefixes.path,
                    batches(sets),
                    doing=f"qedit {STAGE}",
                    still=partial(_still, stores, sets),
                    waiting=partial(say_who_is_at_work, progress),
                ):
                    for part in encoding.parts({key: sets[key] for key in keys}, advance):
                        computed.prefixes += add_missing(prefixes, part.prefixes)
                        computed.tails += add_missing(tails, part.tails)
    return computed


def batches(sets: Mapping[str, ReferenceSet]) -> Iterator[list[str]]:
    """Keys of the reference sets that are encoded together, decided by the keys alone."""
    keys = sorted(sets)
    for start in range(0, len(keys), SETS_IN_BATCH):
        yield keys[start : start + SETS_IN_BATCH]


def _still(stores: RunStores, sets: Mapping[str, ReferenceSet], keys: Sequence[str]) -> list[str]:
    """Those of `keys` of which any row is missing, as it is now."""
    no_prefix = set(stores.prefixes.missing(keys))
    no_tail = set(stores.tails.missing(name for key in keys for name in sets[key].tails))
    return [key for key in keys if key in no_prefix or not no_tail.isdisjoint(sets[key].tails)]
