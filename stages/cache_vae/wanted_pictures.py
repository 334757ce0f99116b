"""Which rows of latents and of mask weights are wanted, and which are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from ...cache.store.store_set import StoreSet
from ..encoding.acceptance import Rejections
from ..encoding.work_split import Shard
from ..samples.sample import Picture, Sample
from ..samples.store_keys import Keys, PairsKeys, distinct
from ..stores.previewed import Shown, only_previewed
from ..stores.row_kinds import RowKind
from ..stores.run import Run
from ..stores.run_stores import RunStores

Named = Callable[[Iterable[Sample]], Iterator[tuple[str, Picture]]]


@dataclass(frozen=True)
class WantedPictures:
    """Everything that the pairs tables want.

    Attributes:
        every_latent, every_weight: by table.
        latents, weights: what is missing, by key, each with a picture to make it of.
    """

    every_latent: list[tuple[PairsKeys, Keys]] = field(default_factory=list)
    every_weight: list[tuple[PairsKeys, Keys]] = field(default_factory=list)
    latents: dict[str, Picture] = field(default_factory=dict)
    weights: dict[str, Picture] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        return len(self.latents) + len(self.weights)

    def count(self) -> int:
        """How many rows are wanted in all."""
        kinds = (self.every_latent, self.every_weight)
        return sum(distinct(keys for _, keys in kind) for kind in kinds if kind)

    def of_share(self, share: Shard | None) -> WantedPictures:
        """The same with this share of what is missing."""
        if share is None:
            return self
        return replace(
            self,
            latents={key: one for key, one in self.latents.items() if share.has(key)},
            weights={key: one for key, one in self.weights.items() if share.has(key)},
        )

    def rejections(self, stores: RunStores, share: Shard | None = None) -> Rejections:
        """What was rejected of it, or of this share of it, as it is now."""
        found = Rejections(share)
        for store_set, every in (
            (stores.latents, self.every_latent),
            (stores.weights, self.every_weight),
        ):
            for table, keys in every:
                found.look(store_set, table, keys)
        return found


def find_pictures(run: Run) -> WantedPictures:
    """Hold the tables against the stores; only what is missing is read as samples.

    Besides what is trained on, that is the whole references of previewed samples.
    """
    wanted, stores = WantedPictures(), run.stores
    for table in run.every_pairs():
        for every, missing, keys, store_set, named in (
            (wanted.every_latent, wanted.latents, table.latents(), stores.latents, _latents),
            (wanted.every_weight, wanted.weights, table.weights(), stores.weights, _weights),
        ):
            every.append((table, keys))
            for key, picture in _missing(table, keys, store_set, named):
                missing.setdefault(key, picture)
    _add_previewed(wanted, only_previewed(run), stores.latents)
    return wanted


def _add_previewed(wanted: WantedPictures, previewed: Iterable[Shown], store_set: StoreSet) -> None:
    """Whole references, where training crops them and previews show them."""
    for one in previewed:
        wanted.every_latent.append((one.table, one.keys(RowKind.LATENTS, ())))
        rejected = store_set.rejected()
        for picture in one.sample.references:
            if picture.latent_key not in store_set and picture.latent_key not in rejected:
                wanted.latents.setdefault(picture.latent_key, picture)


def _missing(
    table: PairsKeys, keys: Keys, store_set: StoreSet, named: Named
) -> Iterator[tuple[str, Picture]]:
    absent = ~store_set.contains_many(keys.keys)
    there = set(keys.keys.filter(pa.array(absent)).to_pylist()) - store_set.rejected().keys()
    if there:
        for key, picture in named(table.samples(keys.rows[absent])):
            if key in there:
                yield key, picture


def _latents(samples: Iterable[Sample]) -> Iterator[tuple[str, Picture]]:
    for sample in samples:
        for picture in (sample.target, *sample.references):
            yield picture.latent_key, picture


def _weights(samples: Iterable[Sample]) -> Iterator[tuple[str, Picture]]:
    for sample in samples:
        if sample.mask:
            yield sample.mask.weight_key, sample.mask
