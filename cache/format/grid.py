"""Grids: how an array is cut into shards of chunks, and where its rows start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..files.checksum import CRC_BYTES
from .packing import codec

SHARD_LENGTH = 16384
CHUNK_LENGTHS = (64, 32, 16, 8)
MOST_PADDING = 1 / 8
MOST_CHUNK_BYTES = 1 << 28  # twice the latents of the largest picture
NOT_THERE = 2**64 - 1  # what a shard's index says of a chunk that is absent
# Chunks begin in a shard's file at such places, as rows do in memory: a tenth faster to copy.
ALIGNED_BYTES = 64


@dataclass(frozen=True)
class Grid:
    """The cut of an array: `shape`, `shard` and `chunk` differ along the first axis only.

    `compressed` says whether chunks are packed by `packing.py`; if not, each has
    `chunk_bytes`. How long the files of packed shards are, which follows from nothing else, is in
    `shard_bytes` once they are written; None where an index of an earlier version is asked.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    compressed: bool = False
    shard_bytes: tuple[int, ...] | None = None

    @property
    def chunk_bytes(self) -> int:
        return 2 * math.prod(self.chunk)

    @property
    def stride_bytes(self) -> int:
        """The distance in bytes between the beginnings of two unpacked chunks in a shard's file."""
        stored = self.chunk_bytes + CRC_BYTES
        return stored + -stored % ALIGNED_BYTES

    @property
    def chunks_a_shard(self) -> int:
        return self.shard[0] // self.chunk[0]

    @property
    def shards(self) -> int:
        return -(-self.shape[0] // self.shard[0])

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the grid in manifests and indices; `grid_in` reads them."""
        fields: dict[str, Any] = {"shape": self.shape, "shard": self.shard, "chunk": self.chunk}
        if self.compressed:
            fields["compression"] = "zstd"
        if self.shard_bytes is not None:
            fields["shard_bytes"] = self.shard_bytes
        return fields

    def shard_name(self, number: int) -> str:
        """Return the file name of shard `number`: Zarr's default chunk key with `.` between."""
        return ".".join(["c", str(number), *("0" for _ in self.shape[1:])])


def grid_in(fields: dict[str, Any]) -> Grid:
    """Return the grid that `as_json` wrote; raise KeyError, TypeError or ValueError for others."""
    compression = fields.get("compression")
    if compression not in (None, "zstd"):
        raise ValueError(f"compression {compression} is unknown")
    shape, shard, chunk = (tuple(fields[name]) for name in ("shape", "shard", "chunk"))
    if (
        not all(type(length) is int and length > 0 for length in (*shape, *shard, *chunk))
        or not shape[1:] == shard[1:] == chunk[1:]
        or shard[0] > SHARD_LENGTH
        or shard[0] % chunk[0]
        or 2 * math.prod(chunk) > MOST_CHUNK_BYTES
    ):
        raise ValueError(f"no array is cut like this: {shape}, {shard}, {chunk}")
    lengths = fields.get("shard_bytes")
    return Grid(
        shape,
        shard,
        chunk,
        compressed=compression is not None,
        shard_bytes=None if lengths is None else tuple(lengths),
    )


def chunk_length(lengths: Sequence[int]) -> int:
    """Return the longest chunk that pads rows of these lengths little more than the shortest does.

    Long chunks are fewer and faster, but the last one of a row is padded: an instruction of
    seven tokens in a chunk of 64 would take nine times its room.
    """
    least = _padded(lengths, CHUNK_LENGTHS[-1])
    fitting = (c for c in CHUNK_LENGTHS if _padded(lengths, c) <= (1 + MOST_PADDING) * least)
    return next(fitting)


def _padded(lengths: Sequence[int], chunk: int) -> int:
    return sum(length + -length % chunk for length in lengths)


def place(
    lengths: Sequence[int], row_shape: tuple[int, ...], *, chunk: int, compressed: bool = False
) -> tuple[Grid, list[int]]:
    """Lay rows along the first axis: each starts on a chunk border and none crosses a shard.

    Args:
        lengths: of the rows along the first axis.
        row_shape: of a row without its first axis.
        chunk: length of a chunk.

    Returns:
        The grid, and where each row starts.

    Raises:
        ValueError: a row is empty or longer than a shard.
    """
    shard = SHARD_LENGTH // chunk * chunk
    starts, end = [], 0
    for length in lengths:
        padded = length + -length % chunk
        if not 0 < padded <= shard:
            raise ValueError(f"a row of length {length} cannot be stored (1 to {shard})")
        if end % shard + padded > shard:
            end += -end % shard
        starts.append(end)
        end += padded
    shapes = ((end, *row_shape), (min(end, shard), *row_shape), (chunk, *row_shape))
    return Grid(*shapes, compressed=compressed), starts


def zarr_metadata(grid: Grid) -> dict[str, Any]:
    """Return the content of zarr.json for an array cut like this."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    packing = [codec()] if grid.compressed else []
    sharding = {
        "chunk_shape": list(grid.chunk),
        "codecs": [little, *packing, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(grid.shape),
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(grid.shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
