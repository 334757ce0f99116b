"""Which image prefixes and text tails are wanted, and what of them is missing.

The null prompt is one more tail of every reference set. Tails are run on the key-value cache
of their prefix, so a new caption costs its own few tokens on disk and no second prefix row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...cache.store.rejected_rows import RejectedRows
from ..samples.sample import Picture, Sample
from ..samples.store_keys import Keys, PairsKeys, distinct
from ..stores.previewed import only_previewed
from ..stores.row_kinds import RowKind
from ..stores.run import Run
from ..stores.run_stores import RunStores
from .work_split import cut

PIXELS_A_TOKEN = 28 * 28
# Only for estimates:
TOKENS_A_PICTURE = 8
TOKENS_AROUND = 64
BYTES_A_TOKEN = 3584 * 2  # channels of bfloat16, at full scale
TOKENS_A_TAIL = 12
LETTERS_A_TOKEN = 3


@dataclass(slots=True)
class ReferenceSet:
    """One ordered set of references, and the captions whose tails follow it (by tail key)."""

    sample: Sample
    tails: dict[str, str] = field(default_factory=dict)

    @property
    def picture_tokens(self) -> int:
        """About how many tokens its pictures are."""
        return sum(_tokens(picture) for picture in self.sample.references)

    @property
    def tail_tokens(self) -> int:
        """About how many tokens its tails have together."""
        letters = sum(map(len, self.tails.values()))
        return letters // LETTERS_A_TOKEN + TOKENS_A_TAIL * len(self.tails)

    @property
    def tokens(self) -> int:
        """About how many there are in all."""
        return self.picture_tokens + self.tail_tokens


@dataclass(slots=True)
class Count:
    """How many rows of each kind."""

    prefixes: int = 0
    tails: int = 0

    @property
    def rows(self) -> int:
        return self.prefixes + self.tails


@dataclass
class Wanted:
    """Everything that the pairs tables want.

    Attributes:
        prefixes, tails: by table.
        work: the reference sets of which anything is missing, by prefix key.
        barren: those with missing tails whose prefix was rejected: there will be none.
    """

    prefixes: list[tuple[PairsKeys, Keys]] = field(default_factory=list)
    tails: list[tuple[PairsKeys, Keys]] = field(default_factory=list)
    work: dict[str, ReferenceSet] = field(default_factory=dict)
    barren: dict[str, ReferenceSet] = field(default_factory=dict)

    def count(self) -> Count:
        """How many rows in all."""
        return Count(
            distinct(keys for _, keys in self.prefixes), distinct(keys for _, keys in self.tails)
        )


def find_wanted(run: Run) -> Wanted:
    """Hold the tables against the stores; only what is missing is read as samples.

    Besides what is trained on, that is the whole references of previewed samples.
    """
    stores, beside = run.stores, run.captions_beside
    wanted, samples = Wanted(), list[Sample]()
    for table in run.every_pairs():
        prefixes, tails = table.prefixes, table.tails(beside)
        wanted.prefixes.append((table, prefixes))
        wanted.tails.append((table, tails))
        absent = [
            keys.rows[~store_set.contains_many(keys.keys)]
            for keys, store_set in ((prefixes, stores.prefixes), (tails, stores.tails))
        ]
        samples += table.samples(np.concatenate(absent))
    for one in only_previewed(run):
        wanted.prefixes.append((one.table, one.keys(RowKind.PREFIXES, beside)))
        wanted.tails.append((one.table, one.keys(RowKind.TAILS, beside)))
        samples.append(one.sample)
    wanted.work = missing_of(reference_sets(samples, beside), stores)
    for key in wanted.work.keys() & stores.prefixes.rejected().keys():
        wanted.barren[key] = wanted.work.pop(key)
    return wanted


def pass_on_rejections(barren: Mapping[str, ReferenceSet], stores: RunStores) -> None:
    """Remember of every tail whose prefix was rejected that it is too, for the same reason.

    If that was accepted of the prefix, it is of the tails: an edited caption asks nobody again.

    Args:
        barren: sets with missing tails, as in `Wanted`.
    """
    rejected = stores.prefixes.rejected()
    for key, one in barren.items():
        row = rejected[key].read(key) if key in rejected else None
        if row is None:
            continue  # forgotten since: it is tried again
        beside = RejectedRows(stores.tails.of(one.sample.dataset).path)
        for tail in one.tails:
            beside.add(replace(row, key=tail))


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
            sizes[stores.prefixes.of(dataset).path] += 2 * channels * one.picture_tokens
        sizes[stores.tails.of(dataset).path] += 2 * channels * one.tail_tokens
    return sizes


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
    """The sets that need the encoder, each with its missing tails only.

    What was rejected before is not tried again.
    """
    no_prefix, no_tail = stores.prefixes.rejected(), stores.tails.rejected()
    work = {}
    for key, one in sets.items():
        tails = {
            name: text
            for name, text in one.tails.items()
            if name not in stores.tails and name not in no_tail
        }
        if tails or (key not in stores.prefixes and key not in no_prefix):
            work[key] = ReferenceSet(one.sample, tails)
    return work


def parts_of(sets: Mapping[str, ReferenceSet]) -> dict[str, list[list[str]]]:
    """By dataset, keys of the sets that are claimed together, decided by the keys alone.

    In a part those of like length follow each other, so that a batch has little padding.
    """
    by_dataset: dict[str, list[str]] = defaultdict(list)
    for key in sorted(sets):
        by_dataset[sets[key].sample.dataset].append(key)
    return {dataset: list(_cut(keys, sets)) for dataset, keys in by_dataset.items()}


def _cut(keys: Sequence[str], sets: Mapping[str, ReferenceSet]) -> Iterator[list[str]]:
    for part in cut(keys, lambda key: BYTES_A_TOKEN * sets[key].tokens):
        yield sorted(part, key=lambda key: (sets[key].picture_tokens, key))


def still_missing(
    stores: RunStores, sets: Mapping[str, ReferenceSet], keys: Sequence[str]
) -> list[str]:
    """Those of `keys` of which any row is missing, as it is now."""
    no_prefix: Collection[str] = set(stores.prefixes.missing(keys))
    names = [name for key in keys for name in sets[key].tails]
    no_tail: Collection[str] = set(stores.tails.missing(names))
    barren = stores.prefixes.rejected()
    no_tail -= stores.tails.rejected().keys()
    return [
        key
        for key in keys
        if key not in barren and (key in no_prefix or not no_tail.isdisjoint(sets[key].tails))
    ]


def _tokens(picture: Picture) -> int:
    assert picture.vl_size is not None, "references always have one"
    return picture.vl_size[0] * picture.vl_size[1] // PIXELS_A_TOKEN + TOKENS_A_PICTURE
