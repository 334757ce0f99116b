"""Torn parts: parts with a lost or truncated file, found by file lengths without opening any."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..files.checksum import CRC_BYTES
from ..format.grid import Grid
from ..format.listing import Listing

THREADS = 16  # so many questions may be on their way to a disk in the network at once
FEW_FILES = 256  # have been asked after before threads are started
INDEX_ENTRY_BYTES = 16


class _Shard(NamedTuple):
    """A shard's file in the part called `part`, and the lengths in bytes that it may have."""

    part: str
    path: str
    lengths: Container[int]


def torn_parts(parts: Path, listing: Listing, *, array: str) -> set[str]:
    """Return the names of parts that lack a shard or have one of a wrong length.

    Of packed parts that only an index of an earlier version speaks of nobody knows the lengths
    without asking every manifest: there only a shard is found that is shorter than any could be.
    """
    shards = list(_shards(os.fspath(parts), listing, array))
    if len(shards) <= FEW_FILES:
        torn = _torn(shards)
    else:
        with ThreadPoolExecutor(THREADS) as threads:
            torn = set().union(*threads.map(_torn, (shards[at::THREADS] for at in range(THREADS))))
    return {name for name in torn if (parts / name).exists()}  # else its rows have moved


def _torn(shards: Sequence[_Shard]) -> set[str]:
    return {shard.part for shard in shards if _length(shard.path) not in shard.lengths}


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _shards(parts: str, listing: Listing, array: str) -> Iterator[_Shard]:
    counts = iter(_chunk_counts(listing).tolist())
    for name, grid in zip(listing.names, listing.grids, strict=True):
        for number in range(grid.shards):
            path = f"{parts}/{name}/{array}/{grid.shard_name(number)}"
            yield _Shard(name, path, _lengths(grid, number, chunks=next(counts)))


def _lengths(grid: Grid, number: int, *, chunks: int) -> Container[int]:
    """Return the possible file lengths of a shard of `chunks` chunks: with gaps or without."""
    if grid.shard_bytes is not None:
        return (grid.shard_bytes[number],)
    index_bytes = INDEX_ENTRY_BYTES * grid.chunks_a_shard + CRC_BYTES
    if grid.compressed:
        return range(index_bytes + chunks * CRC_BYTES + 1, 2**63)
    stored = grid.chunk_bytes + CRC_BYTES
    return tuple(index_bytes + chunks * apart for apart in (grid.stride_bytes, stored))


def _chunk_counts(listing: Listing) -> npt.NDArray[np.int64]:
    """Return the number of chunks in each shard of each part, as one flat array."""
    shards = np.array([grid.shards for grid in listing.grids])
    firsts = np.cumsum(shards) - shards
    cuts = np.array([(grid.shard[0], grid.chunk[0]) for grid in listing.grids])
    part = np.repeat(np.arange(len(listing.names)), listing.counts)
    shard = firsts[part] + listing.rows["start"].to_numpy() // cuts[part, 0]
    chunks = -(-listing.rows["length"].to_numpy().astype(np.int64) // cuts[part, 1])
    return np.bincount(shard, weights=chunks, minlength=int(shards.sum())).astype(np.int64)
