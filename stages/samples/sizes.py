"""The rule by which pictures get their size, when they are cached and when they are denoised."""

from __future__ import annotations

from math import sqrt

from ..models.flavours import MEGAPIXEL_AREA

Size = tuple[int, int]
Amount = float | int  # in the unit that `resolution_type` says

GRID_PIXELS = 32

# Ratios are held within these bounds before the rule of size, so that neither side can vanish
# or explode where a user has opened the ratio bounds of a dataset.
LARGEST_RATIO = 256.0


def size_of_area(area: float | int, ratio: float) -> tuple[int, int]:
    """Return the (width, height) of about `area` square pixels at `ratio` = width / height.

    The rule of diffusers' `calculate_dimensions` for Qwen-Image-Edit: each side is rounded to
    the nearest multiple of 32 (Python's round: ties to even); here it is at least 32.

    >>> size_of_area(1024 * 1024, 1920 / 1080)
    (1376, 768)
    """
    ratio = min(max(ratio, 1 / LARGEST_RATIO), LARGEST_RATIO)
    width = sqrt(area * ratio)
    return on_grid(width), on_grid(width / ratio)


def size_of_edge(edge: Amount, ratio: float) -> Size:
    """Return the (width, height) whose shorter side is `edge` pixels, both rounded to 32."""
    ratio = min(max(ratio, 1 / LARGEST_RATIO), LARGEST_RATIO)
    shorter = on_grid(edge)
    longer = on_grid(shorter * max(ratio, 1 / ratio))
    return (longer, shorter) if ratio >= 1 else (shorter, longer)


def area_of(amount: Amount, unit: str) -> float:
    """Return the square pixels of an `area` (in megapixels) or a `pixel_area` (a square's edge)."""
    return float(amount * MEGAPIXEL_AREA if unit == "area" else amount * amount)


def on_grid(side: float | int) -> int:
    """Return the multiple of 32 nearest to `side`, at least 32."""
    return max(round(side / GRID_PIXELS) * GRID_PIXELS, GRID_PIXELS)
