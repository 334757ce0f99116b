"""Rows read from a Zarr v3 array, straight to where they belong, each checked as it comes.

What a shard's file looks like is said in `arrays.py`, which writes it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .checksum import CRC_BYTES, PIECE_BYTES, crc32c, crc32c_of_more
from .errors import Broken
from .grid import Grid
from .open_files import OpenFile, OpenFiles, read_into

Bits = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

KEPT_OPEN = OpenFiles()


class ArrayReader:
    """Reads rows of one array, each checked against its checksum. Threads may share it.

    Args:
        files: which keeps the shards' files open.
    """

    def __init__(self, folder: Path, grid: Grid, *, files: OpenFiles = KEPT_OPEN) -> None:
        self.grid, self._folder, self._files = grid, os.path.abspath(folder), files
        self._shard_length, self._chunk_length = grid.shard[0], grid.chunk[0]
        self._chunk_bytes = grid.chunk_bytes
        self._row_shape = (-1, *grid.chunk[1:])
        self._shards: dict[int, tuple[str, npt.NDArray[np.uint64]]] = {}

    def read(self, start: int, length: int, *, checksum: int | None) -> Bits:
        """The row of `length` that starts at `start`.

        Args:
            checksum: of the row; None leaves all checksums aside.

        Raises:
            Broken: it is not the row that was written.
        """
        file, chunks = self._chunks(start, length)
        data = np.empty(len(chunks) * self._chunk_bytes, np.uint8)
        if self.grid.compressed:
            crcs = self._unpack(file, chunks, data, checked=checksum is not None)
        elif checksum is None:
            _read_plain(file, chunks, data)
        else:
            crcs = _read_checked(file, chunks, data)
        if checksum is not None:
            _refuse_another(crcs, checksum)
        return data.view("<u2").reshape(self._row_shape)[:length]

    def check(self, start: int, length: int, *, checksum: int) -> None:
        """Make sure that the row is there as it was written; raises Broken. Keeps nothing."""
        file, chunks = self._chunks(start, length)
        space = np.empty(min(PIECE_BYTES, max(size for _, size in chunks)), np.uint8)
        crcs = bytearray(len(chunks) * CRC_BYTES)
        for at, (offset, size) in enumerate(chunks):
            stored = memoryview(crcs)[at * CRC_BYTES : (at + 1) * CRC_BYTES]
            _check_chunk(file, offset, size - CRC_BYTES, into=space, stored=stored)
        _refuse_another(crcs, checksum)

    def _chunks(self, start: int, length: int) -> tuple[OpenFile, list[list[int]]]:
        """The file of a row, and where its chunks lie in it: (offset, bytes) of each."""
        shard, within = divmod(start, self._shard_length)
        first, count = within // self._chunk_length, -(-length // self._chunk_length)
        known = self._shards.get(shard)
        if known is None:
            path = os.path.join(self._folder, self.grid.shard_name(shard))
            file = self._files.get(path)
            index = _read_index(file, self.grid)
            self._shards[shard] = path, index
        else:
            path, index = known
            file = self._files.get(path)
        chunks: list[list[int]] = index[first : first + count].tolist()
        if not chunks or not self._are_one_row(chunks, count):
            raise Broken("its chunks are missing from the shard's index")
        return file, chunks

    def _are_one_row(self, chunks: list[list[int]], count: int) -> bool:
        """Whether these are chunks of this array, which follow each other."""
        if self.grid.compressed:
            end = chunks[0][0]
            for offset, size in chunks:
                if offset != end or not CRC_BYTES < size <= 2 * self._chunk_bytes + 64:
                    return False
                end += size
            return len(chunks) == count
        stored = self._chunk_bytes + CRC_BYTES
        begin = chunks[0][0]
        return chunks == [[begin + number * stored, stored] for number in range(count)]

    def _unpack(
        self, file: OpenFile, chunks: list[list[int]], data: Bytes, *, checked: bool
    ) -> bytearray:
        """Fill `data` with the chunks unpacked; their checksums."""
        from .packing import unpack_into

        begin, end = chunks[0][0], sum(chunks[-1])
        packed, crcs = np.empty(end - begin, np.uint8), bytearray()
        read_into(file, begin, [packed.data])
        for at, (offset, size) in enumerate(chunks):
            chunk = packed[offset - begin : offset - begin + size - CRC_BYTES]
            stored = packed[offset - begin + len(chunk) :][:CRC_BYTES].tobytes()
            if checked and crc32c(chunk).to_bytes(CRC_BYTES, "little") != stored:
                raise Broken("its bytes do not match their checksum")
            crcs += stored
            try:
                unpack_into(data[at * self._chunk_bytes : (at + 1) * self._chunk_bytes], chunk)
            except (ValueError, RuntimeError) as error:
                raise Broken("a chunk cannot be unpacked") from error
        return crcs


def _read_index(file: OpenFile, grid: Grid) -> npt.NDArray[np.uint64]:
    """The (offset, bytes) pairs at the end of a shard's file."""
    index = np.empty((grid.chunks_a_shard, 2), "<u8")
    stored = np.empty(1, "<u4")
    begin = file.size() - index.nbytes - stored.nbytes
    if begin < 0:
        raise Broken("the shard's file is too short")
    read_into(file, begin, [_bytes_of(index), _bytes_of(stored)])
    if crc32c(index) != int(stored[0]):
        raise Broken("the shard's index does not match its checksum")
    return index


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _read_plain(file: OpenFile, chunks: list[list[int]], data: Bytes) -> None:
    """Fill `data` with one system call, whatever the checksums between the chunks say."""
    space, passed = data.data, memoryview(bytearray(CRC_BYTES))
    step = len(data) // len(chunks)
    views = [space[:step]]
    for at in range(1, len(chunks)):
        views += [passed, space[at * step : (at + 1) * step]]
    read_into(file, chunks[0][0], views)


def _read_checked(file: OpenFile, chunks: list[list[int]], data: Bytes) -> bytearray:
    """Fill `data`, hold every chunk against its own checksum; the checksums."""
    crcs, step = bytearray(len(chunks) * CRC_BYTES), len(data) // len(chunks)
    stored = memoryview(crcs)
    for at, (offset, size) in enumerate(chunks):
        _check_chunk(
            file,
            offset,
            size - CRC_BYTES,
            into=data[at * step : (at + 1) * step],
            stored=stored[at * CRC_BYTES : (at + 1) * CRC_BYTES],
        )
    return crcs


def _check_chunk(
    file: OpenFile, offset: int, length: int, *, into: Bytes, stored: memoryview
) -> None:
    """Read a chunk piece by piece and sum it up; `stored` becomes the checksum behind it.

    Args:
        into: where it goes; if that is shorter than the chunk, it is filled again and again.
    """
    checksum, room = 0, len(into)
    step = min(room, PIECE_BYTES)
    for begin in range(0, length, step):
        piece = into[begin % room : begin % room + min(step, length - begin)]
        is_last = begin + step >= length
        read_into(file, offset + begin, [piece.data, stored] if is_last else [piece.data])
        checksum = crc32c_of_more(checksum, piece)
    if checksum.to_bytes(CRC_BYTES, "little") != stored:
        raise Broken("its bytes do not match their checksum")


def _refuse_another(crcs: bytearray, checksum: int) -> None:
    """Make sure that these are the checksums of the chunks of the very row."""
    if crc32c(bytes(crcs)) != checksum:
        raise Broken("another row lies in its place")
