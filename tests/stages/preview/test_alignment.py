"""Drift is measured as it was made: shifts, zooms, and changes beside an edit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qedit.stages.preview.alignment import drift_of, edited_region

OVERSAMPLED = 4


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """A smooth coloured picture, larger than what is looked at of it."""
    cells = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    wide = tuple(round(1.3 * OVERSAMPLED * edge) for edge in size)
    return Image.fromarray(cells).resize(wide, Image.Resampling.BICUBIC)


def view(
    picture: Image.Image, size: tuple[int, int], *, scale: float = 1.0, shift: tuple = (0, 0)
) -> np.ndarray:
    """The middle of `picture`, its content zoomed by `scale` and moved by `shift` pixels."""
    edges = []
    for whole, edge, move in zip(picture.size, size, shift, strict=True):
        half = edge * OVERSAMPLED / 2 / scale
        middle = whole / 2 - move * OVERSAMPLED / scale
        edges.append((middle - half, middle + half))
    (left, right), (top, bottom) = edges
    seen = picture.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    return np.asarray(seen, float) / 255


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        (1.0, (0.0, 0.0)),
        (1.0, (0.3, -0.2)),
        (1.0, (0.5, 0.5)),
        (1.0, (3.25, -7.6)),
        (1.01, (0.0, 0.0)),
        (1.03, (1.5, -2.25)),
        (0.97, (-4.0, 2.5)),
        (0.92, (3.0, 3.0)),
    ],
)
def test_shift_and_scale_are_found(scale: float, shift: tuple[float, float]) -> None:
    size = (144, 112)
    picture = scene(3, size)
    drift = drift_of(view(picture, size), view(picture, size, scale=scale, shift=shift))
    assert drift is not None
    assert drift.shift_x == pytest.approx(shift[0], abs=0.06)
    assert drift.shift_y == pytest.approx(shift[1], abs=0.06)
    assert drift.scale == pytest.approx(scale, abs=0.001)


def test_noise_hardly_matters() -> None:
    picture = scene(4, (128, 128))
    before = view(picture, (128, 128))
    after = view(picture, (128, 128), scale=1.02, shift=(1.5, -0.75))
    noise = np.random.default_rng(0).normal(0, 0.05, after.shape)
    drift = drift_of(before, np.clip(after + noise, 0, 1))
    assert drift is not None
    assert drift.shift_x == pytest.approx(1.5, abs=0.15)
    assert drift.shift_y == pytest.approx(-0.75, abs=0.15)
    assert drift.scale == pytest.approx(1.02, abs=0.004)


def test_an_edit_is_no_drift() -> None:
    reference = view(scene(5, (160, 160)), (160, 160))
    target = reference.copy()
    target[40:110, 20:90] = view(scene(6, (70, 70)), (70, 70))
    drift = drift_of(reference, target, edited_region(reference, target))
    assert drift is not None
    assert np.hypot(drift.shift_x, drift.shift_y) < 0.1
    assert drift.scale == pytest.approx(1, abs=0.002)
    assert drift.outside < 0.002


def test_changes_beside_the_edit_are_counted() -> None:
    reference = np.full((64, 64, 3), 0.5) + 0.2 * np.indices((64, 64)).sum(0)[..., None] % 2 / 10
    target = reference.copy()
    target[:32] = 0.0
    output = target.copy()
    output[32:] += 0.1  # all of what was to stay, by a tenth
    drift = drift_of(reference, output, edited_region(reference, target))
    assert drift is not None
    assert drift.outside == pytest.approx(0.1, abs=0.005)


def test_the_edited_region_is_where_they_differ_with_a_margin() -> None:
    reference = np.zeros((100, 100, 3))
    target = reference.copy()
    target[30:50, 60:80] = 1.0
    region = edited_region(reference, target)
    assert region[30:50, 60:80].all()
    assert not region[:25].any()
    assert not region[:, :55].any()
    assert 400 < region.sum() < 600
    assert not edited_region(reference, reference + 0.02).any()


def test_where_everything_changes_nothing_is_said() -> None:
    reference = view(scene(7, (64, 64)), (64, 64))
    mirrored = reference[:, ::-1]
    assert drift_of(reference, mirrored, edited_region(reference, mirrored)) is None


def test_flat_pictures_have_no_drift() -> None:
    flat = np.full((64, 64, 3), 0.4)
    drift = drift_of(flat, flat)
    assert drift is not None
    assert (drift.shift_x, drift.shift_y, drift.scale, drift.outside) == (0, 0, 1, 0)
