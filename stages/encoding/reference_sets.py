"""Reference sets, and the image prefixes and text tails of them that are missing.

The null prompt is one more tail of every reference set. Tails are run on the key-value cache
of their prefix, so a new caption costs its own few tokens on disk and no second prefix row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...cache.store.rejected_rows import RejectedRows
from ..samples.sample import Picture, Sample
from ..stores.row_kinds import RowKind
from ..stores.run import Run
from ..stores.run_stores import RunStores
from .wanted_rows import WantedRows, in_shard, lacking
from .work_split import Shard, cut

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
        """Return about how many tokens its pictures have."""
        return sum(_tokens(picture) for picture in self.sample.references)

    @property
    def tail_tokens(self) -> int:
        """Return about how many tokens its tails have together."""
        letters = sum(map(len, self.tails.values()))
        return letters // LETTERS_A_TOKEN + TOKENS_A_TAIL * len(self.tails)

    @property
    def tokens(self) -> int:
        """Return about how many tokens pictures and tails have."""
        return self.picture_tokens + self.tail_tokens


@dataclass
class WantedSets(WantedRows[ReferenceSet]):
    """The image prefixes and text tails that the pairs tables want; the work is by prefix key.

    Attributes:
        without_prefix: sets with missing tails whose prefix was rejected: there will be none.
    """

    without_prefix: dict[str, ReferenceSet] = field(default_factory=dict)

    @property
    def sets(self) -> dict[str, ReferenceSet]:
        """Return the reference sets that lack any row, by prefix key."""
        return self.work[RowKind.PREFIXES]

    def missing(self) -> Counter[RowKind]:
        """Return how many prefixes and how many tails are to be computed."""
        return Counter(
            {
                RowKind.PREFIXES: sum(key not in self.stores.prefixes for key in self.sets),
                RowKind.TAILS: sum(len(found.tails) for found in self.sets.values()),
            }
        )

    def unreadable(self, shard: Shard | None = None) -> Counter[RowKind]:
        """Return how many tails of `shard` follow a prefix that was rejected."""
        sets = in_shard(self.without_prefix, shard).values()
        return Counter({RowKind.TAILS: sum(len(found.tails) for found in sets)})

    def pass_on_rejections(self, shard: Shard | None) -> None:
        """Reject every tail of `shard` whose prefix was rejected, for the same reason.

        Where the rejected prefix was accepted, its tails are too: an edited caption needs no
        new decision.
        """
        rejected = self.stores.prefixes.rejected()
        for key, found in in_shard(self.without_prefix, shard).items():
            row = rejected[key].read(key) if key in rejected else None
            if row is None:
                continue  # forgotten since: it is encoded again
            beside = RejectedRows(self.stores.tails.of(found.sample.dataset).path)
            for tail in found.tails:
                beside.add(replace(row, key=tail))

    def count_bytes(self, *, channels: int) -> dict[Path, int]:
        """Return about how many bytes the missing rows take, by store."""
        stores = self.stores
        sizes: dict[Path, int] = defaultdict(int)
        for key, found in self.sets.items():
            dataset = found.sample.dataset
            if key not in stores.prefixes:
                sizes[stores.prefixes.of(dataset).path] += 2 * channels * found.picture_tokens
            sizes[stores.tails.of(dataset).path] += 2 * channels * found.tail_tokens
        return sizes


def find_sets(run: Run) -> WantedSets:
    """Return the reference sets that lack rows, those of previews included."""
    wanted, samples = WantedSets(run.stores), list[Sample]()
    for (prefixes, tails), found in lacking(run, RowKind.PREFIXES, RowKind.TAILS):
        wanted.keys += [prefixes, replace(tails, deciding=prefixes.keys)]
        samples += found
    sets = missing_of(reference_sets(samples, run.captions_beside), run.stores)
    for key in sets.keys() & run.stores.prefixes.rejected().keys():
        wanted.without_prefix[key] = sets.pop(key)
    wanted.work[RowKind.PREFIXES] = sets
    return wanted


def reference_sets(samples: Iterable[Sample], beside: Iterable[str]) -> dict[str, ReferenceSet]:
    """Return every distinct reference set by prefix key, with the tails wanted after it."""
    also = tuple(beside)
    sets: dict[str, ReferenceSet] = {}
    for sample in samples:
        found = sets.setdefault(sample.prefix_key, ReferenceSet(sample))
        for caption in (*sample.captions, *also):
            found.tails.setdefault(sample.tail_key(caption), caption)
    return sets


def missing_of(sets: Mapping[str, ReferenceSet], stores: RunStores) -> dict[str, ReferenceSet]:
    """Return the sets that need the encoder, each with its missing tails only.

    What was rejected before is not encoded again.
    """
    no_prefix, no_tail = stores.prefixes.rejected(), stores.tails.rejected()
    work = {}
    for key, found in sets.items():
        tails = {
            name: text
            for name, text in found.tails.items()
            if name not in stores.tails and name not in no_tail
        }
        if tails or (key not in stores.prefixes and key not in no_prefix):
            work[key] = ReferenceSet(found.sample, tails)
    return work


def parts_of(sets: Mapping[str, ReferenceSet]) -> dict[str, list[list[str]]]:
    """Return by dataset the keys of the sets that are claimed together; the keys alone decide it.

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
    """Return those of `keys` that lack any row now."""
    no_prefix: Collection[str] = set(stores.prefixes.missing(keys))
    names = [name for key in keys for name in sets[key].tails]
    no_tail = set(stores.tails.missing(names)) - stores.tails.rejected().keys()
    unreadable = stores.prefixes.rejected()
    return [
        key
        for key in keys
        if key not in unreadable and (key in no_prefix or not no_tail.isdisjoint(sets[key].tails))
    ]


def _tokens(picture: Picture) -> int:
    assert picture.vl_size is not None, "references always have one"
    return picture.vl_size[0] * picture.vl_size[1] // PIXELS_A_TOKEN + TOKENS_A_PICTURE
