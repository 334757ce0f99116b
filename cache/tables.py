"""Parquet tables, written whole and read back with their checksums verified."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .atomic import new_file
from .errors import Damaged

SMALL_BYTES = 1 << 20


def write_table(path: Path, table: pa.Table) -> None:
    """Make `path` hold `table`, whole or not at all."""
    with new_file(path) as file:
        file.write(table_bytes(table))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table (or these columns of it) in the file at `path`.

    Raises:
        Damaged: the file is not the one that was written.
        FileNotFoundError: there is none.
    """
    try:
        return table_in(path.read_bytes(), columns)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own: not found, not allowed
        raise Damaged(
            f"The table {path} cannot be read: {error}.",
            "Delete it and run the stage again that wrote it.",
        ) from error


def table_bytes(table: pa.Table) -> bytes:
    """`table` as the bytes of a Parquet file with a checksum on every page."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def table_in(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table (or these columns of it) whose Parquet file is `data`."""
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        # to wake threads takes longer than to read a small table
        many = len(data) > SMALL_BYTES
        return file.read(columns=None if columns is None else list(columns), use_threads=many)
