"""Find held-out samples that are trained on as well: their loss says nothing of new pictures."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from ....cache.format.tables import table_in
from ....config.configuration import Configuration
from ....config.datasets import Dataset
from ...models.checkpoint.checkpoint import Checkpoint
from ...samples.schema import flat
from ...samples.store_keys import pairs_keys


def overlap_warning(configuration: Configuration, checkpoint: Checkpoint) -> str | None:
    """Return a warning about held-out samples whose target is trained on too; None: no such.

    Targets are compared by the content of their files, whatever their names.
    """
    held = [
        _targets(configuration, dataset, checkpoint) for dataset in configuration.eval_datasets()
    ]
    if not sum(map(len, held)):
        return None
    shown = _digests(
        _targets(configuration, dataset, checkpoint) for dataset in configuration.main_datasets()
    )
    leaked = [
        name
        for table in held
        for name in table["sample"].filter(pc.is_in(table["digest"], value_set=shown)).to_pylist()
    ]
    if not leaked:
        return None
    verb = "is" if len(leaked) == 1 else "are"
    return (
        f"{len(leaked)} of {sum(map(len, held))} held-out samples {verb} trained on as well, the "
        f"first is {leaked[0]}: the held-out loss then falls by "
        "memorising, and `best/` follows it. Take them out of one of the two datasets."
    )


def _targets(configuration: Configuration, main: Dataset, checkpoint: Checkpoint) -> pa.Table:
    """Return the name of each sample of `main`, and the content digest of its target."""
    path = pairs_keys(configuration, main, checkpoint.flavour).path
    table = table_in(path.read_bytes(), ["sample", "target.digest"])
    digests = flat(table["target"]).field("digest")
    return pa.table({"sample": flat(table["sample"]), "digest": digests})


def _digests(tables: Iterable[pa.Table]) -> pa.ChunkedArray:
    chunks = [chunk for table in tables for chunk in table["digest"].chunks]
    return pa.chunked_array(chunks, pa.string())
