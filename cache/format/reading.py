"""Rows read from a Zarr v3 array straight into the caller's memory, each checksum verified.

`arrays.py` describes and writes the shards' files. The checksums between the chunks add nothing
to a row's checksum, which is a checksum of theirs: so it is enough to sum up the bytes that were
read. `check` compares them as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import Broken
from ..files.checksum import CRC_BYTES, PIECE_BYTES, crc32c, crc32c_of_more
from .grid import NOT_THERE, Grid
from .open_files import MOST_MAPPED_BYTES, OpenFile, OpenFiles

Bits = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

KEPT_OPEN = OpenFiles(most_mapped_bytes=MOST_MAPPED_BYTES)
NO_CHUNKS = "its chunks are missing from the shard's index"
NOT_ITS_CHECKSUM = "its bytes do not match their checksum"


class _Shard(NamedTuple):
    """The index of a shard.

    Attributes:
        offsets, sizes: where each chunk begins, and how long it is with its checksum.
        following: how many chunks, from each on, follow each other in the file.
        gap_bytes: what lies between two of them.
    """

    path: str
    offsets: memoryview
    sizes: memoryview
    following: memoryview
    gap_bytes: int


class ArrayReader:
    """A reader of one array's rows that verifies their checksums. Threads may share it.

    Args:
        files: which keeps the shards' files open.
    """

    def __init__(self, folder: Path, grid: Grid, *, files: OpenFiles = KEPT_OPEN) -> None:
        self.grid, self._folder, self._files = grid, os.path.abspath(folder), files
        self._shard_length, self._chunk_length = grid.shard[0], grid.chunk[0]
        self._chunk_bytes, self._compressed = grid.chunk_bytes, grid.compressed
        self._shards: dict[int, _Shard] = {}

    def read_into(self, space: Bytes, start: int, length: int, *, checksum: int) -> None:
        """Fill `space` with the row of `length` that starts at `start`.

        Args:
            space: of as many bytes as the row has.
            checksum: of the row.

        Raises:
            Broken: it is not the row that was written.
        """
        shard, first, count = self._place(start, length)
        if self._compressed:
            self._unpack(shard, first, space, count=count, checksum=checksum)
            return
        file, offset = self._files.get(shard.path), shard.offsets[first]
        step, apart = self._chunk_bytes, CRC_BYTES + shard.gap_bytes
        if len(space) == step:
            crcs = _filled(file, offset, space, 0).to_bytes(CRC_BYTES, "little")
        else:
            crcs = b""
            for begin in range(0, len(space), step):
                chunk = space[begin : begin + step]
                crc = _filled(file, offset, chunk, 0)
                if len(chunk) < step:  # the last one is longer than the row
                    rest = np.empty(step - len(chunk), np.uint8)
                    crc = _filled(file, offset + len(chunk), rest, crc)
                crcs += crc.to_bytes(CRC_BYTES, "little")
                offset += step + apart
        if crc32c(crcs) != checksum:
            self.check(start, length, checksum=checksum)
            raise Broken("it was read as something else than it is: the memory may be at fault")

    def check(self, start: int, length: int, *, checksum: int, space: Bytes | None = None) -> None:
        """Make sure that the row is there as it was written; raise Broken otherwise. Keeps nothing.

        Args:
            space: at least of some hundred bytes, to read into.
        """
        shard, first, count = self._place(start, length)
        file = self._files.get(shard.path)
        behind = CRC_BYTES + shard.gap_bytes
        space = np.empty(PIECE_BYTES, np.uint8) if space is None else space
        step, crcs = len(space) - behind, bytearray()
        for chunk in range(first, first + count):
            at = shard.offsets[chunk]
            end, crc = at + shard.sizes[chunk] - CRC_BYTES, 0
            while at < end:  # the last piece comes with what lies behind the chunk
                size = min(step, end - at)
                file.fill(space[: size + behind if at + size == end else size], at)
                crc = crc32c_of_more(crc, space[:size])
                at += size
            crcs += crc.to_bytes(CRC_BYTES, "little")
            stored = space[size : size + behind].tobytes()
            if crcs[-CRC_BYTES:] + bytes(shard.gap_bytes) != stored:
                raise Broken(NOT_ITS_CHECKSUM)
        if crc32c(bytes(crcs)) != checksum:
            raise Broken("another row lies in its place")

    def _place(self, start: int, length: int) -> tuple[_Shard, int, int]:
        """Return a row's shard, the first of its chunks there, and how many chunks it has."""
        chunk, number = self._chunk_length, start // self._shard_length
        first, count = start % self._shard_length // chunk, (length + chunk - 1) // chunk
        shard = self._shards.get(number)
        if shard is None:
            path = os.path.join(self._folder, self.grid.shard_name(number))
            shard = _index_of(self._files.get(path), path, self.grid)
            self._shards[number] = shard
        if not 0 < count <= shard.following[first]:
            raise Broken(NO_CHUNKS)
        return shard, first, count

    def _unpack(
        self, shard: _Shard, first: int, space: Bytes, *, count: int, checksum: int
    ) -> None:
        """Fill `space` with the decompressed chunks."""
        from .packing import unpack_into

        file, crcs, step = self._files.get(shard.path), bytearray(), self._chunk_bytes
        for begin, chunk in zip(
            range(0, len(space), step), range(first, first + count), strict=True
        ):
            packed = np.empty(shard.sizes[chunk], np.uint8)
            file.fill(packed, shard.offsets[chunk])
            packed, stored = packed[:-CRC_BYTES], packed[-CRC_BYTES:].tobytes()
            if crc32c(packed).to_bytes(CRC_BYTES, "little") != stored:
                raise Broken(NOT_ITS_CHECKSUM)
            crcs += stored
            here = space[begin : begin + step]
            whole = here if len(here) == step else np.empty(step, np.uint8)
            try:
                unpack_into(whole, packed)
            except (ValueError, RuntimeError) as error:
                raise Broken("a chunk cannot be unpacked") from error
            if whole is not here:
                here[:] = whole[: len(here)]
        if crc32c(bytes(crcs)) != checksum:
            raise Broken("another row lies in its place")


def _filled(file: OpenFile, offset: int, space: Bytes, checksum: int) -> int:
    """Fill `space` piece by piece; return `checksum` continued over its bytes."""
    if len(space) <= PIECE_BYTES:
        file.fill(space, offset)
        return crc32c_of_more(checksum, space)
    for begin in range(0, len(space), PIECE_BYTES):
        piece = space[begin : begin + PIECE_BYTES]
        file.fill(piece, offset + begin)
        checksum = crc32c_of_more(checksum, piece)
    return checksum


def _index_of(file: OpenFile, path: str, grid: Grid) -> _Shard:
    """Return the index at the end of a shard's file; raise Broken if it is damaged."""
    index = np.empty((grid.chunks_a_shard, 2), "<u8")
    stored = np.empty(1, "<u4")
    begin = file.size() - index.nbytes - stored.nbytes
    if begin < 0:
        raise Broken("the shard's file is too short")
    file.fill(_bytes_of(index), begin)
    file.fill(_bytes_of(stored), begin + index.nbytes)
    if crc32c(index) != int(stored[0]):
        raise Broken("the shard's index does not match its checksum")
    offsets, sizes = index.T.copy()
    gap = 0 if grid.compressed else _gap_of(offsets, sizes, grid, end=begin)
    following = _following(offsets, sizes, grid, gap_bytes=gap)
    return _Shard(path, offsets.data, sizes.data, following.data, gap)


def _gap_of(
    offsets: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64], grid: Grid, *, end: int
) -> int:
    """Return the bytes between two chunks: none where they do not begin at round numbers.

    So were shards written once, and so does zarr-python write them.
    """
    gap = grid.stride_bytes - grid.chunk_bytes - CRC_BYTES
    here = np.sort(offsets[offsets != NOT_THERE])
    ends = np.append(here[1:], np.uint64(end))
    return gap if (ends - here == grid.stride_bytes).all() else 0


def _following(
    offsets: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    grid: Grid,
    *,
    gap_bytes: int,
) -> npt.NDArray[np.int64]:
    """Return, for each chunk, how many from it on lie contiguously in the file; 0: no chunk."""
    plain = grid.chunk_bytes + CRC_BYTES
    packed = (sizes > CRC_BYTES) & (sizes <= 2 * plain + 64)
    there = packed if grid.compressed else sizes == plain
    goes_on = there[:-1] & there[1:] & (offsets[:-1] + sizes[:-1] + gap_bytes == offsets[1:])
    following = there.astype(np.int64)
    for at in np.flatnonzero(goes_on)[::-1].tolist():
        following[at] += following[at + 1]
    return following


def _bytes_of(array: npt.NDArray[Any]) -> Bytes:
    return array.reshape(-1).view(np.uint8)
