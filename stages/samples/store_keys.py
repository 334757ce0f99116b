"""What a run wants of the stores, as columns of keys.

A million pairs are compared with the stores without making an object of each: only what is
missing is read as samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.format.tables import table_blocks, table_in
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..models.flavours import Flavour
from .sample import Sample
from .schema import flat, samples_in
from .source_folders import refuse_others
from .table import is_whole, manifest_in, read_pairs, table_folder, verified
from .tail_key_cache import keys_of, remember_tails, remembered_tails, tail_digests

Rows = npt.NDArray[np.int64]
ROWS_AT_ONCE = 64  # of a table of which the beginning may do


@dataclass(frozen=True)
class Keys:
    """Keys of cached rows, and for each the row of the pairs table that wants it."""

    keys: pa.Array
    rows: Rows


@dataclass(frozen=True)
class PairsKeys:
    """One pairs table, of which only the columns are read that are asked for."""

    path: Path

    @cached_property
    def prefixes(self) -> Keys:
        """The key of every sample's image prefix."""
        keys = flat(self._columns("prefix_key")["prefix_key"])
        return Keys(keys, np.arange(len(keys)))

    def latents(self) -> Keys:
        """The keys of every target and every reference."""
        table = self._columns("target.latent_key", "references.list.element.latent_key")
        targets = flat(table["target"]).field("latent_key")
        lists = flat(table["references"])
        parents = np.asarray(pc.list_parent_indices(lists), np.int64)
        keys = pa.concat_arrays([targets, lists.flatten().field("latent_key")])
        return Keys(keys, np.concatenate([np.arange(len(targets)), parents]))

    def weights(self) -> Keys:
        """The keys of every mask; a sample without one is not in here."""
        table = self._columns("mask.weight_key")
        if "mask" not in table.column_names:  # a table from before there were masks
            return Keys(pa.array([], pa.string()), np.array([], np.int64))
        keys = pc.struct_field(flat(table["mask"]), "weight_key")
        return Keys(keys.drop_null(), np.flatnonzero(keys.is_valid()))

    def tails(self, beside: Sequence[str]) -> Keys:
        """The keys of every caption's tail, and of those of `beside` after every prefix."""
        remembered = remembered_tails(self.path, beside)
        if remembered is not None:
            return Keys(*remembered)
        digests, rows = self._tails(beside)
        remember_tails(self.path, beside, digests=digests, rows=rows)
        return Keys(keys_of(digests), rows)

    def _tails(self, beside: Sequence[str]) -> tuple[bytes, Rows]:
        """The digests of all tails, joined, and for each the row that wants it."""
        lists = flat(self._columns("captions")["captions"])
        parents = np.asarray(pc.list_parent_indices(lists), np.int64)
        prefixes = self.prefixes.keys
        digests = tail_digests(prefixes.take(parents).to_pylist(), lists.flatten().to_pylist())
        rows = [parents]
        once = {prefix: row for row, prefix in enumerate(prefixes.to_pylist())}
        for caption in beside:
            digests += tail_digests(once, [caption] * len(once))
            rows.append(np.array(list(once.values()), np.int64))
        return digests, np.concatenate(rows)

    def samples(self, rows: Rows) -> list[Sample]:
        """The samples in these rows of the table."""
        if not len(rows):
            return []
        found, first, wanted = list[Sample](), 0, np.unique(rows)
        for block in table_blocks(verified(self.path)):
            here = wanted[(wanted >= first) & (wanted < first + len(block))] - first
            if len(here):
                found += samples_in(block.take(pa.array(here)))
            first += len(block)
        return found

    def each(self) -> Iterator[Sample]:
        """Every sample in the order of the table, read as it is asked for."""
        for block in table_blocks(verified(self.path)):
            for start in range(0, len(block), ROWS_AT_ONCE):
                end = min(start + ROWS_AT_ONCE, len(block))
                yield from samples_in(block.take(pa.array(range(start, end))))

    def _columns(self, *names: str) -> pa.Table:
        return table_in(verified(self.path).read_bytes(), names)


def pairs_keys(configuration: Configuration, main: Dataset, flavour: Flavour) -> PairsKeys:
    """The pairs table of `main` under these settings; raises as `read_pairs` does."""
    folder = table_folder(configuration, main, flavour)
    manifest = manifest_in(folder)
    if manifest is None or not is_whole(folder, manifest) or not manifest["accepted"]:
        read_pairs(configuration, main, flavour)
        raise AssertionError("a table that is not complete is refused")
    refuse_others(configuration, main, manifest.get("folders", {}))
    return PairsKeys(folder / manifest["pairs"])


def distinct(every: Iterable[Keys]) -> int:
    """How many different keys there are."""
    chunks = [keys.keys for keys in every]
    return len(pa.chunked_array(chunks, pa.string()).unique())
