"""The rows that the pairs tables want of a caching stage, and what is missing of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.store.store_set import StoreSet
from ..samples.sample import Sample
from ..samples.store_keys import Keys, PairsKeys, Rows, distinct
from ..stores.previewed import only_previewed
from ..stores.row_kinds import RowKind
from ..stores.run import Run
from ..stores.run_stores import RunStores
from .acceptance import Rejections
from .work_split import Shard

Item = TypeVar("Item")


@dataclass(frozen=True)
class TableKeys:
    """The keys of one kind that a pairs table wants.

    Attributes:
        deciding: the keys whose shards the rows are in; None: each key is in its own.
    """

    kind: RowKind
    table: PairsKeys
    keys: Keys
    deciding: Keys | None = None


@dataclass
class WantedRows(Generic[Item]):
    """Everything that the pairs tables want of a stage.

    Attributes:
        keys: what is wanted.
        work: by kind and key, the items to encode for what is missing of it.
    """

    stores: RunStores
    keys: list[TableKeys] = field(default_factory=list)
    work: dict[RowKind, dict[str, Item]] = field(default_factory=dict)

    def count(self) -> Counter[RowKind]:
        """Return how many different rows are wanted of each kind."""
        kinds = {wanted.kind for wanted in self.keys}
        return Counter(
            {
                kind: distinct(wanted.keys for wanted in self.keys if wanted.kind is kind)
                for kind in kinds
            }
        )

    def missing(self) -> Counter[RowKind]:
        """Return how many rows are to be computed of each kind."""
        return Counter({kind: len(items) for kind, items in self.work.items()})

    def unreadable(self, shard: Shard | None = None) -> Counter[RowKind]:
        """Return how many rows of `shard` cannot be made because others were rejected."""
        return Counter()

    def pass_on_rejections(self, shard: Shard | None) -> None:
        """Reject the rows of `shard` that cannot be made because others were rejected."""

    def rejections(self, shard: Shard | None = None) -> Rejections:
        """Return what was rejected of it, as it is now; of `shard` alone if that is given."""
        found = Rejections(shard)
        for wanted in self.keys:
            found.look(
                wanted.kind,
                self.stores.of(wanted.kind),
                wanted.table,
                wanted.keys,
                deciding=wanted.deciding,
            )
        return found


Wanted = TypeVar("Wanted", bound=WantedRows[Any])


def of_shard(wanted: Wanted, shard: Shard | None) -> Wanted:
    """Return the same with the work of one shard alone; all of it if that is None."""
    work = {kind: in_shard(items, shard) for kind, items in wanted.work.items()}
    return replace(wanted, work=work)


def in_shard(items: Mapping[str, Item], shard: Shard | None) -> dict[str, Item]:
    """Return the items whose keys are in `shard`; all of them if it is None."""
    return {key: item for key, item in items.items() if shard is None or shard.has(key)}


def lacking(run: Run, *kinds: RowKind) -> Iterator[tuple[list[TableKeys], list[Sample]]]:
    """Hold the pairs tables against the stores; only samples that may lack rows are read.

    Yields:
        For each table, and for each sample that previews show whole where training crops it,
        the keys of these kinds that it wants, and the samples that may lack rows of them.
    """
    beside = run.captions_beside
    for table in run.every_pairs():
        wanted = [TableKeys(kind, table, kind.keys_in(table, beside)) for kind in kinds]
        absent = [_absent(run.stores.of(table_keys.kind), table_keys.keys) for table_keys in wanted]
        yield wanted, table.samples(np.concatenate(absent))
    for shown in only_previewed(run):
        wanted = [TableKeys(kind, shown.table, shown.keys(kind, beside)) for kind in kinds]
        yield wanted, [shown.sample]


def _absent(store_set: StoreSet, wanted: Keys) -> Rows:
    """Return the rows of the table whose keys are neither stored nor rejected."""
    absent = ~store_set.contains_many(wanted.keys)
    if rejected := store_set.rejected():
        values = pa.array(list(rejected), pa.string())
        absent &= ~np.asarray(pc.is_in(wanted.keys, value_set=values))
    return wanted.rows[absent]
