"""The keys that a run wants in the stores, as columns.

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
from .schema import blocks_at, flat, samples_in
from .table import accepted_table, verified
from .tail_key_cache import keys_of, remember_tails, remembered_tails, tail_digests

Rows = npt.NDArray[np.int64]
ROWS_AT_ONCE = 64  # of a table of which the beginning may do


@dataclass(frozen=True)
class Keys:
    """The keys of cached rows, and for each the row of the pairs table that wants it."""

    keys: pa.Array
    rows: Rows


@dataclass(frozen=True)
class PairsKeys:
    """A pairs table in a file; only the columns that are asked for are read."""

    path: Path

    @cached_property
    def prefixes(self) -> Keys:
        """The key of every sample's image prefix."""
        keys = flat(self._columns("prefix_key")["prefix_key"])
        return Keys(keys, np.arange(len(keys)))

    def latents(self) -> Keys:
        """Return the keys of every target and every reference."""
        table = self._columns("target.latent_key", "references.list.element.latent_key")
        targets = flat(table["target"]).field("latent_key")
        lists = flat(table["references"])
        parents = np.asarray(pc.list_parent_indices(lists), np.int64)
        keys = pa.concat_arrays([targets, lists.flatten().field("latent_key")])
        return Keys(keys, np.concatenate([np.arange(len(targets)), parents]))

    def weights(self) -> Keys:
        """Return the keys of every mask; a sample without one is left out."""
        table = self._columns("mask.weight_key")
        if "mask" not in table.column_names:  # a table from before there were masks
            return Keys(pa.array([], pa.string()), np.array([], np.int64))
        keys = pc.struct_field(flat(table["mask"]), "weight_key")
        return Keys(keys.drop_null(), np.flatnonzero(keys.is_valid()))

    def tails(self, beside: Sequence[str]) -> Keys:
        """Return the keys of every caption's tail, and of `beside` after every prefix."""
        remembered = remembered_tails(self.path, beside)
        if remembered is not None:
            return Keys(*remembered)
        digests, rows = self._tails(beside)
        remember_tails(self.path, beside, digests=digests, rows=rows)
        return Keys(keys_of(digests), rows)

    def _tails(self, beside: Sequence[str]) -> tuple[bytes, Rows]:
        """Return the joined digests of all tails, and for each the row that wants it."""
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
        """Read the samples in these rows of the table."""
        if not len(rows):
            return []
        blocks = blocks_at(verified(self.path), np.unique(rows))
        return [sample for _, block in blocks for sample in samples_in(block)]

    def each(self) -> Iterator[Sample]:
        """Yield every sample in the order of the table, read as it is asked for."""
        for block in table_blocks(verified(self.path)):
            for start in range(0, len(block), ROWS_AT_ONCE):
                yield from samples_in(block.slice(start, ROWS_AT_ONCE))

    def _columns(self, *names: str) -> pa.Table:
        return table_in(verified(self.path).read_bytes(), names)


def pairs_keys(configuration: Configuration, main: Dataset, flavour: Flavour) -> PairsKeys:
    """Open the pairs table of `main` under these settings; raises as `read_pairs` does."""
    path, _ = accepted_table(configuration, main, flavour)
    return PairsKeys(path)


def distinct(every: Iterable[Keys]) -> int:
    """Count the different keys."""
    chunks = [keys.keys for keys in every]
    return len(pa.chunked_array(chunks, pa.string()).unique())
