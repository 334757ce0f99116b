"""The keys of many text tails, remembered beside their pairs table.

To digest two million captions takes ten seconds, to read their digests half of one. What is
remembered is named after what it was computed from and after its own checksum: it is right or it
is not there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..cache.atomic import write_bytes
from ..cache.checksum import crc32c
from ..cache.fingerprint import key_of
from ..cache.tables import table_bytes, table_in

MANY = 50_000
PREFIX = "tails-"


def remembered_tails(
    table: Path, beside: Sequence[str]
) -> tuple[pa.Array, npt.NDArray[np.int64]] | None:
    """The tail keys of the pairs table at `table` and the rows that want them, if known.

    Args:
        beside: captions that go with every pair.
    """
    for path in table.parent.glob(f"{_name(table, beside)}-*.parquet"):
        data = path.read_bytes()
        if path.stem.rpartition("-")[2] == f"{crc32c(data):08x}":
            found = table_in(data)
            return found["key"].combine_chunks(), found["row"].to_numpy()
    return None


def remember_tails(
    table: Path, beside: Sequence[str], *, keys: pa.Array, rows: npt.NDArray[np.int64]
) -> None:
    """Keep them for the next time, if they are many and may be written there."""
    if len(keys) < MANY or not os.access(table.parent, os.W_OK):
        return
    data = table_bytes(pa.table({"key": keys, "row": pa.array(rows)}), repeats=False)
    write_bytes(table.parent / f"{_name(table, beside)}-{crc32c(data):08x}.parquet", data)


def belongs_to(name: str, table: Path | str) -> bool:
    """Whether a file called `name` remembers the tails of this table."""
    return name.startswith(f"{PREFIX}{_digest(Path(table))}-")


def _name(table: Path, beside: Sequence[str]) -> str:
    return f"{PREFIX}{_digest(table)}-{key_of(list(beside))[:8]}"


def _digest(table: Path) -> str:
    """What the name of a pairs table says of its content."""
    return table.stem.rpartition("-")[2]
