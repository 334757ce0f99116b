"""cache-embeds: which image prefixes and text tails are wanted, and in which parts they are made.

The null prompt is one more tail of every reference set. Tails are run on the key-value cache
of their prefix, so a new caption costs its own few tokens on disk and no second prefix row.
Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...config.configuration import Configuration
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..samples import Sample
from ..stage import Outcome, Progress
from ..stores import RunStores, add_missing, captions_beside, open_stores, samples_of

STAGE = "cache-embeds"


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
) -> Outcome:
    """Bring the embed stores to hold every image prefix and every text tail.

    Raises:
        NotComplete: there are no pairs for these settings, or a picture changed since.
    """
    started = time.monotonic()
    settings = configuration.settings
    checkpoint = open_checkpoint(settings)
    sets = reference_sets(samples_of(configuration, checkpoint), captions_beside(settings))
    stores = open_stores(configuration, checkpoint)
    work = missing_of(sets, stores)
    missing = Count(
        sum(key not in stores.prefixes for key in work),
        sum(len(one.tails) for one in work.values()),
    )
    computed = Count()
    if work and not dry_run:
        computed = _fill(
            configuration, checkpoint, stores=stores, work=work, progress=progress, device=device
        )
    wanted = len(sets) + sum(len(one.tails) for one in sets.values())
    return Outcome(
        stage=STAGE,
        wanted=wanted,
        kept=wanted - (missing if dry_run else computed).rows,
        computed=computed.rows,
        failed=0,
        seconds=time.monotonic() - started,
        where=f"{stores.prefixes.where()}, {stores.tails.where()}",
        unit="embeds",
        facts={
            "prefixes": len(sets),
            "prefixes_computed": computed.prefixes,
            "tails": wanted - len(sets),
            "tails_computed": computed.tails,
        }
        | ({"missing": missing.rows} if dry_run else {}),
    )


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
    with progress.bar(len(work), STAGE, unit="reference set") as advance:
        for dataset, sets in by_dataset.items():
            prefixes, tails = stores.prefixes.of(dataset), stores.tails.of(dataset)
            with prefixes.writing(), tails.writing():
                for part in encoding.parts(sets, advance):
                    computed.prefixes += add_missing(prefixes, part.prefixes)
                    computed.tails += add_missing(tails, part.tails)
    return computed
