"""Drift: an edit that has moved or zoomed away from its reference, and what else it changed.

Shifts come from phase correlation (Kuglin and Hines, 1975) of tiles, to a fraction of a pixel
by an upsampled transform around the peak (Guizar-Sicairos et al., 2008). A zoom moves tiles
away from the centre, in proportion to where they lie: scale and shift are fitted to the
shifts of the tiles, so an edit in a part of the picture does not pass for a drift of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

Grey = Float[ndarray, "height width"]
Rgb = Float[ndarray, "height width 3"]

# Of the range of a channel: below it lies what JPEG and a VAE do by themselves.
UNCHANGED = 0.06
# A tile, or a picture, of which less than this stays the same says nothing about drift.
LEAST_UNCHANGED = 0.25
FINENESS = 64  # of a pixel: the steps in which peaks are looked for
TILES = 4
ROUNDS = 3
WHITENING = 0.4  # 1: phase alone; 0: plain correlation


@dataclass(frozen=True)
class Drift:
    """The position of an output over its reference.

    Attributes:
        shift_x, shift_y: where the output's content lies beside the reference's, in pixels
            to the right and down, measured at the centre.
        scale: above 1, the output is zoomed in.
        outside: mean absolute difference of output and reference where nothing was to change,
            of the range of a channel (0 to 1).
    """

    shift_x: float
    shift_y: float
    scale: float
    outside: float


def drift_of(
    reference: Rgb, output: Rgb, edited: Bool[ndarray, "height width"] | None = None
) -> Drift | None:
    """Measure `output` against `reference`, both in [0, 1] and of one size.

    Args:
        edited: the pixels that the edit is to change; None means none.

    Returns:
        None where less than a quarter of the picture is to stay the same.
    """
    kept = np.ones(reference.shape[:2]) if edited is None else 1.0 - edited
    if kept.mean() < LEAST_UNCHANGED:
        return None
    outside = float((np.abs(output - reference).mean(axis=2) * kept).sum() / kept.sum())
    one, two = _grey(reference), _grey(output)
    scale, shift = 1.0, np.array(_shift(one, two))
    for _ in range(ROUNDS):
        # what is left once the output is moved back; tiles see small shifts alone
        left_scale, left = _fit(one, _moved_back(two, scale, shift), kept)
        shift = shift + scale * left
        scale *= left_scale
    return Drift(float(shift[0]), float(shift[1]), scale, outside)


def edited_region(reference: Rgb, target: Rgb) -> Bool[ndarray, "height width"]:
    """Return a mask of the pixels that an edit changes, with a margin."""
    changed = np.abs(target - reference).max(axis=2) > UNCHANGED
    reach = max(1, round(0.01 * max(changed.shape)))
    return _box_mean(changed.astype(np.float64), reach) > 0.02


def _grey(picture: Rgb) -> Grey:
    return np.asarray(picture @ np.array([0.299, 0.587, 0.114]), np.float64)


def _fit(one: Grey, two: Grey, kept: Grey) -> tuple[float, Float[ndarray, " 2"]]:
    """Fit the scale about the centre, and the shift, to the shifts of tiles.

    Args:
        kept: the weight of each pixel, 0 where the edit is to change something.
    """
    height, width = one.shape
    size = (max(height // TILES * 2, 16), max(width // TILES * 2, 16))
    places, shifts, weights = [], [], []
    for top in np.linspace(0, max(height - size[0], 0), TILES).astype(int):
        for left in np.linspace(0, max(width - size[1], 0), TILES).astype(int):
            tile = np.s_[top : top + size[0], left : left + size[1]]
            share = float(kept[tile].mean())
            contrast = float(one[tile].std() * two[tile].std())
            if share < LEAST_UNCHANGED or contrast < 1e-6:
                continue
            across, down = _shift(one[tile], two[tile])
            places.append((left + (size[1] - width) / 2, top + (size[0] - height) / 2))
            shifts.append((across, down))
            weights.append(share**2 * contrast)
    if not places:
        return 1.0, np.zeros(2)
    return _line_through(np.array(places), np.array(shifts), np.array(weights))


def _line_through(
    places: Float[ndarray, "tile 2"],
    shifts: Float[ndarray, "tile 2"],
    weights: Float[ndarray, " tile"],
) -> tuple[float, Float[ndarray, " 2"]]:
    """Fit shift = t + (scale - 1) * place by least squares, reweighted against outliers.

    Args:
        places, shifts: of each tile, (x, y) in pixels, places from the centre.
    """
    slope, base = 0.0, np.zeros(2)
    trust = weights / weights.sum()
    for _ in range(8):
        centre = (trust[:, None] * places).sum(0)
        mean = (trust[:, None] * shifts).sum(0)
        around, moved = places - centre, shifts - mean
        spread = float((trust[:, None] * around**2).sum())
        slope = float((trust[:, None] * around * moved).sum()) / spread if spread else 0.0
        base = mean - slope * centre
        error = np.linalg.norm(shifts - base - slope * places, axis=1)
        trust = weights / (1.0 + (error / 0.25) ** 2)
        trust = trust / trust.sum()
    return 1.0 + slope, base


def _shift(one: Grey, two: Grey) -> tuple[float, float]:
    """Return the shift of `two` against `one` in pixels, to the right and down."""
    window = np.outer(np.hanning(one.shape[0]), np.hanning(one.shape[1]))
    first, second = (
        np.fft.fft2((picture - np.average(picture, weights=window)) * window)
        for picture in (one, two)
    )
    cross = second * np.conj(first)
    # only partly whitened: phase alone would weigh the noise of empty frequencies as much as the
    # picture; the highest frequencies (noise, resampling) fade out
    rows, columns = (np.fft.fftfreq(edge) for edge in one.shape)
    soft = np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * 0.15**2))
    loudness = np.abs(cross)
    phase = cross / (loudness + 1e-9 * loudness.max() + 1e-30) ** WHITENING * soft
    surface = np.fft.ifft2(phase).real
    peak = np.unravel_index(int(surface.argmax()), surface.shape)
    down, across = (
        float(place if place <= edge // 2 else place - edge)
        for place, edge in zip(peak, one.shape, strict=True)
    )
    for reach, step in ((1.0, 1 / 8), (1 / 8, 1 / FINENESS)):
        offsets = np.arange(-reach, reach + step / 2, step)
        upon_rows = np.exp(2j * np.pi * np.outer(down + offsets, rows))
        upon_columns = np.exp(2j * np.pi * np.outer(columns, across + offsets))
        fine = (upon_rows @ phase @ upon_columns).real
        row, column = np.unravel_index(int(fine.argmax()), fine.shape)
        down, across = down + float(offsets[row]), across + float(offsets[column])
    return across, down


def _moved_back(picture: Grey, scale: float, shift: Float[ndarray, " 2"]) -> Grey:
    """Return `picture` with this scale and shift undone, bilinear, edges repeated."""
    height, width = picture.shape
    rows = (np.arange(height) - (height - 1) / 2) * scale + (height - 1) / 2 + shift[1]
    columns = (np.arange(width) - (width - 1) / 2) * scale + (width - 1) / 2 + shift[0]
    return _along(_along(picture, rows, axis=0), columns, axis=1)


def _along(picture: Grey, places: Float[ndarray, " place"], *, axis: int) -> Grey:
    places = np.clip(places, 0, picture.shape[axis] - 1)
    before = np.minimum(np.floor(places).astype(int), picture.shape[axis] - 2)
    share = places - before
    share = share[:, None] if axis == 0 else share[None, :]
    return np.asarray(
        np.take(picture, before, axis) * (1 - share) + np.take(picture, before + 1, axis) * share
    )


def _box_mean(picture: Grey, reach: int) -> Grey:
    """Return the mean of each pixel's square of 2 * reach + 1."""
    edge = 2 * reach + 1
    for axis in (0, 1):
        padding = [(reach + 1, reach) if axis == at else (0, 0) for at in (0, 1)]
        sums = np.cumsum(np.pad(picture, padding, mode="edge"), axis=axis)
        late, early = (
            np.take(sums, np.arange(start, start + picture.shape[axis]), axis)
            for start in (edge, 0)
        )
        picture = (late - early) / edge
    return picture
