"""A million pairs looked up and named without making a key of each: the pairs table has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ....cache.files.fingerprint import fingerprint_of_list
from ....cache.format.tables import table_in
from ....config.configuration import Configuration
from ...models.checkpoint.checkpoint import Checkpoint
from ...models.checkpoint.digests import digests_file, remembered
from ...samples.schema import BLOCK_ROWS, flat
from ...samples.store_keys import pairs_keys
from ...samples.table import used_main_datasets
from ...stores.run_stores import RunStores

_NAMES = ("sample", "captions", "prefix_key", "target.latent_key")
_REFERENCES = "references.list.element.latent_key"
# Raised whenever `run_record.identity` says something else of the same pair.
IDENTITY_VERSION = "samples-1"


def all_rows_are_there(
    configuration: Configuration,
    checkpoint: Checkpoint,
    stores: RunStores,
    *,
    beside: Sequence[str],
) -> bool:
    """Return whether every pair certainly has every row, also for the captions `beside`.

    Pairs with masks, or in groups, are left to who looks at each of them.

    Raises:
        NotComplete: there are no pairs for these settings.
    """
    for main in used_main_datasets(configuration):
        table = pairs_keys(configuration, main, checkpoint.flavour)
        if _has_more(table.path):
            return False
        latents, tails = table.latents(), table.tails(beside)
        for store_set, wanted in (
            (stores.latents, latents),
            (stores.prefixes, table.prefixes),
            (stores.tails, tails),
        ):
            if not store_set.contains_many(wanted.keys).all():
                return False
    return True


def samples_digest(configuration: Configuration, checkpoint: Checkpoint, name: str) -> str:
    """Return `run_record.digest_of_samples` of the pairs of dataset `name`, from columns alone.

    It takes seconds for a million pairs, so it is remembered by the name of their table, which
    says its content.
    """
    (main,) = (dataset for dataset in configuration.main_datasets() if dataset.id == name)
    path = pairs_keys(configuration, main, checkpoint.flavour).path
    return remembered(
        f"{IDENTITY_VERSION} {path.name}",
        partial(_digest_in, path),
        remember=digests_file(configuration.settings),
    )


def _digest_in(path: Path) -> str:
    table = table_in(path.read_bytes(), [*_NAMES, _REFERENCES]).combine_chunks()
    starts = range(0, len(table), BLOCK_ROWS)
    blocks = (_identities(table.slice(start, BLOCK_ROWS)) for start in starts)
    return fingerprint_of_list("samples", chain.from_iterable(blocks))


def _has_more(path: Path) -> bool:
    """Return whether a pair has a mask, or takes turns with others."""
    names = set(pq.read_schema(path).names) & {"mask", "group"}
    table = table_in(path.read_bytes(), sorted(names))
    masks = "mask" in names and table["mask"].null_count < len(table)
    return masks or ("group" in names and pc.any(pc.not_equal(table["group"], "")).as_py() is True)


def _identities(table: pa.Table) -> list[list[Any]]:
    """Return `run_record.identity` of each row."""
    references = flat(table["references"])
    ends = references.value_lengths().to_numpy().cumsum().tolist()
    shown = references.flatten().field("latent_key").to_pylist()
    return [
        [name, target, shown[start:end], prefix, *captions]
        for name, target, start, end, prefix, captions in zip(
            table["sample"].to_pylist(),
            flat(table["target"]).field("latent_key").to_pylist(),
            [0, *ends[:-1]],
            ends,
            table["prefix_key"].to_pylist(),
            table["captions"].to_pylist(),
            strict=True,
        )
    ]
