"""Zarr v3 arrays of bfloat16 bits, cut along their first axis, a checksum on every chunk.

A shard file is the chunks one after another, each followed by its crc32c, then an index of
(offset, bytes) pairs and the index's own crc32c: Zarr's `sharding_indexed` codec with `bytes`
and `crc32c` inside. Any Zarr v3 reader opens it. Here it is written in one pass and read with
one system call a row, straight to where the row belongs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt

from .atomic import file_in_place, make_folder, sync_folder
from .grid import Grid

NOT_THERE = 2**64 - 1
CRC_BYTES = 4
BUFFERS_A_CALL = 512  # systems take at least 1024
PIECE_BYTES = 1 << 18

Bits = npt.NDArray[np.uint16]


class Broken(Exception):
    """What lies on disk is not what was written; says how, not where."""


def crc32c(data: npt.NDArray[Any] | bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`, a contiguous array or bytes."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return int(google_crc32c.value(data))


def write_array(
    folder: Path, grid: Grid, *, starts: list[int], rows: Iterable[Bits], zarr_json: bytes
) -> list[int]:
    """Write `rows` ([length, ...] each) into a new array; the checksum of each row."""
    make_folder(folder)
    checksums: list[int] = []
    remaining = list(zip(starts, rows, strict=True))
    while remaining:
        number = remaining[0][0] // grid.shard[0]
        here = [pair for pair in remaining if pair[0] // grid.shard[0] == number]
        remaining = remaining[len(here) :]
        with file_in_place(folder / grid.shard_name(number)) as file:
            checksums += _write_shard(file, grid, here)
    with file_in_place(folder / "zarr.json") as file:
        file.write(zarr_json)
    sync_folder(folder)
    return checksums


def _write_shard(file: BinaryIO, grid: Grid, rows: Sequence[tuple[int, Bits]]) -> list[int]:
    """Write the chunks of `rows` (start, row) and the index; the checksum of each row."""
    index = np.full((grid.chunks_a_shard, 2), NOT_THERE, "<u8")
    checksums, offset = [], 0
    for start, row in rows:
        first = start % grid.shard[0] // grid.chunk[0]
        crcs = _write_chunks(file, grid, row)
        for number in range(first, first + len(crcs)):
            index[number] = offset, grid.chunk_bytes + CRC_BYTES
            offset += grid.chunk_bytes + CRC_BYTES
        checksums.append(crc32c(crcs))
    file.write(index.tobytes())
    file.write(crc32c(index).to_bytes(CRC_BYTES, "little"))
    return checksums


def _write_chunks(file: BinaryIO, grid: Grid, row: Bits) -> npt.NDArray[np.uint32]:
    """Write `row` chunk by chunk, the last one padded with zeros; the chunks' checksums."""
    crcs = []
    for begin in range(0, len(row), grid.chunk[0]):
        chunk = row[begin : begin + grid.chunk[0]]
        if len(chunk) < grid.chunk[0]:
            padded = np.zeros(grid.chunk, "<u2")
            padded[: len(chunk)] = chunk
            chunk = padded
        chunk = np.ascontiguousarray(chunk, "<u2")
        crcs.append(crc32c(chunk))
        file.write(chunk.data)
        file.write(crcs[-1].to_bytes(CRC_BYTES, "little"))
    return np.array(crcs, "<u4")


class ArrayReader:
    """Reads rows of one array, each checked against its checksum."""

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.folder, self.grid = folder, grid
        self._indices: dict[int, list[list[int]]] = {}

    def read(self, start: int, length: int, *, checksum: int | None) -> Bits:
        """The row of `length` that starts at `start`.

        Args:
            checksum: of the row; None leaves all checksums aside.

        Raises:
            Broken: it is not the row that was written.
        """
        grid = self.grid
        shard, within = divmod(start, grid.shard[0])
        first, count = within // grid.chunk[0], -(-length // grid.chunk[0])
        data, crcs = np.empty(count * grid.chunk_bytes, np.uint8), bytearray(count * CRC_BYTES)
        handle = _opened(f"{self.folder}{os.sep}{grid.shard_name(shard)}")
        try:
            offset = self._offset(handle, shard, first=first, count=count)
            if checksum is None:
                _read_into(handle, offset, _interleaved(data, crcs))
            else:
                _read_and_check(handle, offset, data, crcs)
        finally:
            os.close(handle)
        if checksum is not None and crc32c(bytes(crcs)) != checksum:
            raise Broken("another row lies in its place")
        return data.view("<u2").reshape(-1, *grid.chunk[1:])[:length]

    def _offset(self, handle: int, shard: int, *, first: int, count: int) -> int:
        """Where in the shard's file the chunks lie, which must follow each other."""
        if shard not in self._indices:
            self._indices[shard] = _read_index(handle, self.grid)
        entries = self._indices[shard][first : first + count]
        stored = self.grid.chunk_bytes + CRC_BYTES
        begin = entries[0][0] if entries else 0
        following = [[begin + number * stored, stored] for number in range(count)]
        if entries != following:
            raise Broken("its chunks are missing from the shard's index")
        return begin


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Broken(f"the file {os.path.basename(path)} is missing") from error


def _read_index(handle: int, grid: Grid) -> list[list[int]]:
    """The (offset, bytes) pairs at the end of a shard's file."""
    index = np.empty((grid.chunks_a_shard, 2), "<u8")
    stored = np.empty(1, "<u4")
    begin = os.fstat(handle).st_size - index.nbytes - stored.nbytes
    if begin < 0:
        raise Broken("the shard's file is too short")
    _read_into(handle, begin, [_bytes_of(index), _bytes_of(stored)])
    if crc32c(index) != int(stored[0]):
        raise Broken("the shard's index does not match its checksum")
    entries: list[list[int]] = index.tolist()
    return entries


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _interleaved(data: npt.NDArray[np.uint8], crcs: bytearray) -> list[memoryview]:
    """Where what lies in the file belongs: a chunk, its checksum, the next chunk, ..."""
    chunks, sums = data.data, memoryview(crcs)
    step = len(data) * CRC_BYTES // len(crcs)
    views = []
    for number in range(len(crcs) // CRC_BYTES):
        views.append(chunks[number * step : (number + 1) * step])
        views.append(sums[number * CRC_BYTES : (number + 1) * CRC_BYTES])
    return views


def _read_and_check(handle: int, offset: int, data: npt.NDArray[np.uint8], crcs: bytearray) -> None:
    """Fill `data` and the stored `crcs`, and hold every chunk against its own.

    Piece by piece: what has just been read is still near the processor when it is summed up,
    which is half as fast again as to read all of it first.
    """
    views, at = _interleaved(data, crcs), 0
    for chunk, stored in zip(views[::2], views[1::2], strict=True):
        checksum = 0
        for begin in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[begin : begin + PIECE_BYTES]
            last = begin + PIECE_BYTES >= len(chunk)
            _read_into(handle, offset, [piece, stored] if last else [piece])
            checksum = google_crc32c.extend(checksum, data[at : at + len(piece)])
            at += len(piece)
            offset += len(piece)
        offset += CRC_BYTES
        if checksum.to_bytes(CRC_BYTES, "little") != stored:
            raise Broken("its bytes do not match their checksum")


def _read_into(handle: int, offset: int, views: list[memoryview]) -> None:
    """Fill `views` with the bytes at `offset`, however many the system gives at a time."""
    try:
        while views:
            got = os.preadv(handle, views[:BUFFERS_A_CALL], offset)
            if got == 0:
                raise Broken("the shard's file is too short")
            offset += got
            full = 0
            while full < len(views) and got >= len(views[full]):
                got -= len(views[full])
                full += 1
            views = views[full:]
            if got:
                views[0] = views[0][got:]
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Broken("the disk cannot read it") from error
