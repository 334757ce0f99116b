"""The keys of many text tails, kept in a file beside their pairs table.

To digest two million captions takes seconds, to read their digests half of one. The file is named
after what it was computed from and after its own checksum, so it is either right or not found.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache.errors import Broken, QeditError
from ...cache.files.atomic import write_bytes
from ...cache.files.checksum import crc32c
from ...cache.files.fingerprint import key_of
from ...cache.format.tables import table_bytes, table_in
from ...cache.regular_file import content_of

MANY = 50_000
PREFIX = "tails-"
DIGEST_BYTES = 16


def tail_digests(prefixes: Iterable[str], captions: Iterable[str]) -> bytes:
    """Return the joined digests that `Sample.tail_key` writes in hex.

    >>> tail_digests(["0"], ["a"]).hex() == key_of({"prefix": "0", "caption": "a"})
    True
    """
    blake2b, quoted = hashlib.blake2b, encode_basestring
    return b"".join(
        [
            blake2b(
                f'{{"caption":{quoted(caption)},"prefix":"{prefix}"}}'.encode(),
                digest_size=DIGEST_BYTES,
            ).digest()
            for prefix, caption in zip(prefixes, captions, strict=True)
        ]
    )


def keys_of(digests: bytes) -> pa.Array:
    """Return joined digests as keys: strings of hex digits."""
    letters = 2 * DIGEST_BYTES
    count = len(digests) // DIGEST_BYTES
    ends = np.arange(count + 1, dtype=np.int64) * letters
    text = pa.py_buffer(digests.hex().encode())
    return pa.LargeStringArray.from_buffers(count, pa.py_buffer(ends), text).cast(pa.string())


def remembered_tails(
    table: Path, beside: Sequence[str]
) -> tuple[pa.Array, npt.NDArray[np.int64]] | None:
    """Return the tail keys of the pairs table at `table` and the rows that want them, if known.

    Args:
        beside: captions that go with every pair.
    """
    for path in table.parent.glob(f"{_name(table, beside)}-*.parquet"):
        try:
            data = content_of(path)
        except Broken:
            continue
        if path.stem.rpartition("-")[2] == f"{crc32c(data):08x}":
            found = table_in(data)
            if "digest" in found.column_names:  # else of an earlier version
                digests = b"".join(map(_joined, found["digest"].chunks))
                return keys_of(digests), found["row"].to_numpy()
    return None


def remember_tails(
    table: Path, beside: Sequence[str], *, digests: bytes, rows: npt.NDArray[np.int64]
) -> None:
    """Write the digests and rows beside `table`, if they are many and it may be written there."""
    if len(rows) < MANY:
        return
    as_column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(DIGEST_BYTES), len(rows), [None, pa.py_buffer(digests)]
    )
    data = table_bytes(pa.table({"digest": as_column, "row": pa.array(rows)}), repeats=False)
    with contextlib.suppress(QeditError):
        write_bytes(table.parent / f"{_name(table, beside)}-{crc32c(data):08x}.parquet", data)


def belongs_to(name: str, table: Path | str) -> bool:
    """Return whether a file called `name` keeps the tail keys of this table."""
    return name.startswith(f"{PREFIX}{_digest(Path(table))}-")


def _joined(column: pa.FixedSizeBinaryArray) -> bytes:
    data = memoryview(column.buffers()[1])
    return bytes(data[column.offset * DIGEST_BYTES :][: len(column) * DIGEST_BYTES])


def _name(table: Path, beside: Sequence[str]) -> str:
    return f"{PREFIX}{_digest(table)}-{key_of(list(beside))[:8]}"


def _digest(table: Path) -> str:
    """Return the digest in the name of a pairs table."""
    return table.stem.rpartition("-")[2]
