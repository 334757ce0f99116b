"""Parquet tables, written whole and read back with their checksums verified."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import Broken, Damaged
from ..files.atomic import new_file
from ..regular_file import content_of, refuse_irregular

SMALL_BYTES = 1 << 20
# Fetching ahead is left to threads of Arrow's own. One that still holds what Python lent it while
# the process ends kills it (pyarrow 26), and its exit code with it; nothing here is faster by it.
AS_ASKED = {"page_checksum_verification": True, "pre_buffer": False}


def write_table(path: Path, table: pa.Table) -> None:
    """Make `path` hold `table`, whole or not at all."""
    with new_file(path) as file:
        file.write(table_bytes(table))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table (or these columns of it) in the file at `path`.

    Raises:
        Damaged: the file is not the one that was written.
        FileNotFoundError: there is none.
    """
    try:
        return table_in(content_of(path), columns)
    except (pa.ArrowException, OSError, Broken) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own: not found, not allowed
        raise Damaged(
            f"The table {path} cannot be read: {error}.",
            "Delete it and run the stage again that wrote it.",
        ) from error


def table_bytes(table: pa.Table, *, repeats: bool = True) -> bytes:
    """Return `table` as the bytes of a Parquet file with a checksum on every page.

    Args:
        repeats: whether values come more than once, so that it pays to look for that.
    """
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", write_page_checksum=True, use_dictionary=repeats
    )
    return buffer.getvalue()


def write_blocks(
    schema: pa.Schema, blocks: Iterable[pa.RecordBatch], *, write: Callable[[bytes], object]
) -> None:
    """Write a table that is never held as a whole, one row group for each block.

    Args:
        write: takes the bytes of the file as they come.
    """
    sink = pa.PythonFile(_Written(write), mode="w")
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for block in blocks:
            writer.write_batch(block)


class _Written(io.RawIOBase):
    """The file interface that a Parquet writer expects, over a `write` function."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self._written_bytes = write, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(data)
        self._written_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written_bytes


def table_blocks(path: Path) -> Iterator[pa.Table]:
    """Yield the table in the file at `path`, one row group after the other.

    Raises:
        Broken: it is no regular file.
    """
    refuse_irregular(path)
    with path.open("rb") as file, pq.ParquetFile(file, **AS_ASKED) as table:
        for number in range(table.num_row_groups):
            yield table.read_row_group(number, use_threads=False)


def table_in(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table (or these columns of it) in `data`, the bytes of a Parquet file."""
    with pq.ParquetFile(pa.BufferReader(data), **AS_ASKED) as file:
        # to wake threads takes longer than to read a small table
        many = len(data) > SMALL_BYTES
        return file.read(columns=None if columns is None else list(columns), use_threads=many)
