"""How a picture looks, in 64 bits: near-duplicates have nearly the same ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ..images import on_background

# Of 64 bits. Pictures saved again, or slightly resized, differ in none to three.
ALIKE_BITS = 3
_BANDS = 4  # one more than ALIKE_BITS: two alike pictures agree in one band at least
_COLUMNS, _ROWS = 9, 8
_SAMPLES = 8  # of each cell, along either side
_CROWD = 64  # pictures of one band: flat ones, which say nothing about each other


def look_of(picture: Image.Image) -> int:
    """Whether each cell of a coarse grey grid is darker than its right neighbour (a dHash).

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
    """Whether every pixel is black where the picture is shown; most are told by a few samples."""
    few = picture.resize((_COLUMNS, _ROWS), Image.Resampling.NEAREST)
    return _is_black(few) and _is_black(picture)


def are_alike(one: int, other: int) -> bool:
    """Whether two looks are those of near-duplicates."""
    return (one ^ other).bit_count() <= ALIKE_BITS


def alike_groups(looks: Sequence[int]) -> list[list[int]]:
    """Groups of two or more positions in `looks` that are near-duplicates, each in order.

    Pictures without any structure are in no group: their looks say nothing.
    """
    leader = list(range(len(looks)))

    def lead(position: int) -> int:
        while leader[position] != position:
            leader[position] = leader[leader[position]]
            position = leader[position]
        return position

    for one, other in _neighbours(looks):
        if lead(one) != lead(other) and are_alike(looks[one], looks[other]):
            first, second = sorted((lead(one), lead(other)))
            leader[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for position in range(len(looks)):
        groups[lead(position)].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _is_black(picture: Image.Image) -> bool:
    return on_background(picture).convert("L").getextrema()[1] == 0


def _neighbours(looks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a band of 16 bits; of a crowd, each with the one before it."""
    for band in range(_BANDS):
        shelves: dict[int, list[int]] = defaultdict(list)
        for position, look in enumerate(looks):
            if look.bit_count() > _BANDS:
                shelves[look >> 16 * band & 0xFFFF].append(position)
        for shelf in shelves.values():
            for place, one in enumerate(shelf):
                for other in shelf[max(place - _CROWD, 0) : place]:
                    yield other, one
