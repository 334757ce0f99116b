"""Zarr v3 arrays of bfloat16 bits, cut along their first axis, a checksum on every chunk.

A shard file is the chunks one after another, each followed by its crc32c, then an index of
(offset, bytes) pairs and the index's own crc32c: Zarr's `sharding_indexed` codec with `bytes`
and `crc32c` inside, and `blosc` between them if it is compressed. Any Zarr v3 reader opens it.
Chunks that are not compressed begin at multiples of 64 bytes, with zeros in the gaps. Here it is
written in one pass; `reading.py` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..files.atomic import file_in_place, make_folder, sync_folder
from ..files.checksum import CRC_BYTES, crc32c
from .grid import NOT_THERE, Grid
from .packing import packed

Bits = npt.NDArray[np.uint16]

# A shard goes to the system in blocks of so many bytes. What it keeps of a file in memory it keeps
# as it was written: in large pieces that are read a quarter faster than those of odd lengths, and
# in pieces of this length it can map each at once.
BLOCK_BYTES = 1 << 21


def write_array(
    folder: Path, grid: Grid, *, starts: list[int], rows: Iterable[Bits], zarr_json: bytes
) -> list[int]:
    """Write `rows` into a new Zarr array at `folder`.

    Args:
        grid: how the array is cut; starts and rows fit it.
        starts: where each row starts along the first axis.
        rows: uint16 bits of bfloat16, `[length, ...]` each.
        zarr_json: the content of the array's zarr.json.

    Returns:
        The checksum of each row: the CRC-32C of its chunks' CRC-32Cs.
    """
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
    """Write the chunks of `rows` (start, row) and the index; return the checksum of each row."""
    index = np.full((grid.chunks_a_shard, 2), NOT_THERE, "<u8")
    checksums, offset, blocks = [], 0, _Blocks(file)
    for start, row in rows:
        first = start % grid.shard[0] // grid.chunk[0]
        crcs: list[int] = []
        for number, chunk in enumerate(_chunks(grid, row), start=first):
            size = _write_chunk(blocks, chunk, crcs, packs=grid.compressed)
            index[number] = offset, size
            gap = 0 if grid.compressed else grid.stride_bytes - size
            blocks.write(bytes(gap))
            offset += size + gap
        checksums.append(crc32c(np.array(crcs, "<u4")))
    blocks.write(index.tobytes())
    blocks.write(crc32c(index).to_bytes(CRC_BYTES, "little"))
    blocks.flush()
    return checksums


class _Blocks:
    """A buffer that hands what is written on to `file` in blocks of `BLOCK_BYTES`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._filled = file, 0
        self._block = memoryview(bytearray(BLOCK_BYTES))

    def write(self, data: bytes | memoryview) -> None:
        """Take in the bytes of `data`."""
        while data:
            some = data[: BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            data = data[len(some) :]
            if self._filled == BLOCK_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hand on the last, shorter block."""
        self._file.write(self._block[: self._filled])
        self._filled = 0


def _chunks(grid: Grid, row: Bits) -> Iterator[Bits]:
    """Yield `row` chunk by chunk, the last one padded with zeros."""
    for begin in range(0, len(row), grid.chunk[0]):
        chunk = row[begin : begin + grid.chunk[0]]
        if len(chunk) < grid.chunk[0]:
            padded = np.zeros(grid.chunk, "<u2")
            padded[: len(chunk)] = chunk
            chunk = padded
        yield np.ascontiguousarray(chunk, "<u2")


def _write_chunk(blocks: _Blocks, chunk: Bits, crcs: list[int], *, packs: bool) -> int:
    """Write a chunk and its checksum, which is added to `crcs`; return the number of bytes."""
    data = np.frombuffer(packed(chunk) if packs else chunk.data, np.uint8)
    crcs.append(crc32c(data))
    blocks.write(data.data)
    blocks.write(crcs[-1].to_bytes(CRC_BYTES, "little"))
    return data.nbytes + CRC_BYTES
