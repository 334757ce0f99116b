"""Perceptual hashes of 64 bits (dHash): near-duplicate pictures differ in few bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..pictures.images import on_background

Looks = npt.NDArray[np.uint64]

# Of 64 bits. Pictures saved again, or slightly resized, differ in none to three.
ALIKE_BITS = 3
_BANDS = 4  # one more than ALIKE_BITS: two alike pictures agree in one band at least
_COLUMNS, _ROWS = 9, 8
_SAMPLES = 8  # of each cell, along either side
_CROWD = 64  # pictures of one band: flat ones, which say nothing about each other


def look_of(picture: Image.Image) -> int:
    """Return the dHash: whether each cell of a coarse grey grid is darker than its right neighbour.

    Takes a few thousand samples of the picture instead of all pixels, so that it costs
    nothing beside decoding.
    """
    samples = picture.resize((_COLUMNS * _SAMPLES, _ROWS * _SAMPLES), Image.Resampling.NEAREST)
    if samples.mode != "L":
        samples = samples.convert("RGB").convert("L")
    cells = np.asarray(samples, dtype=np.uint32)
    cells = cells.reshape(_ROWS, _SAMPLES, _COLUMNS, _SAMPLES).sum(axis=(1, 3))
    bits = np.packbits(cells[:, :-1] < cells[:, 1:])
    return int.from_bytes(bits.tobytes(), "big")


def is_black(picture: Image.Image) -> bool:
    """Return whether every visible pixel is black; a few samples decide most pictures."""
    few = picture.resize((_COLUMNS, _ROWS), Image.Resampling.NEAREST)
    return _is_black(few) and _is_black(picture)


def alike_groups(looks: Looks) -> list[list[int]]:
    """Return groups of two or more positions in `looks` that are near-duplicates.

    Pictures without any structure are in no group: their looks say nothing.
    """
    values, of_each = np.unique(looks, return_inverse=True)
    leader = list(range(len(values)))

    def lead(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    tell = np.bitwise_count(values) > _BANDS
    for one, other in _alike_among(values, np.flatnonzero(tell)):
        first, second = sorted((lead(one), lead(other)))
        leader[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    of_each = np.array([lead(place) for place in leader], np.int64)[of_each.reshape(-1)]
    several = (np.bincount(of_each, minlength=len(values)) > 1) & tell
    for position in np.flatnonzero(several[of_each]).tolist():
        groups[int(of_each[position])].append(position)
    return list(groups.values())


def _alike_among(values: Looks, places: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of places with alike values; only those with an equal 16-bit band are compared.

    Of a crowd, each is compared with the few before it.
    """
    for band in range(_BANDS):
        bucket = (values[places] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(bucket, kind="stable")
        bucket, sorted_places = bucket[order], places[order]
        for apart in range(1, min(_CROWD, len(places) - 1) + 1):
            beside = np.flatnonzero(bucket[apart:] == bucket[:-apart])
            if not len(beside):
                break  # no bucket is longer
            one, other = sorted_places[beside], sorted_places[beside + apart]
            alike = np.bitwise_count(values[one] ^ values[other]) <= ALIKE_BITS
            yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)


def _is_black(picture: Image.Image) -> bool:
    return on_background(picture).convert("L").getextrema()[1] == 0
