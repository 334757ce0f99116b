"""The drift of each preview from its reference, measured once and stored beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...cache.files.atomic import readable_json
from ...cache.files.decides_nothing import put_text
from ..run_output.previews import Stored, drift_file, read_drift
from .alignment import LEAST_UNCHANGED, Drift, drift_of, edited_region
from .pictures import Sources, opened

VERSION = 4  # raised whenever the same pictures measure otherwise
MEASURED_PIXELS = 512  # the longer edge at which it is measured
LARGEST_STRETCH = 1.04  # between reference and target
MASKED = 0.02  # of white: from there on a mask's pixel is to change
ROUNDED_PIXELS = 16  # by which the rule of size may move a side


def bring_drift_up_to_date(output_dir: Path, stored: Iterable[Stored], sources: Sources) -> None:
    """Measure every preview that was not measured yet, and write the results by step."""
    by_step: dict[int, list[Stored]] = {}
    for one in stored:
        by_step.setdefault(one.step, []).append(one)
    for step, previews in by_step.items():
        before = read_drift(output_dir, step)
        found = {one.path.name: _found(one, before, sources) for one in previews}
        if found != before:
            put_text(drift_file(output_dir, step), readable_json(found))


def _found(one: Stored, before: Mapping[str, Any], sources: Sources) -> dict[str, Any]:
    known: dict[str, Any] = before.get(one.path.name, {})
    made_from = f"{VERSION} {one.recipe}"
    if known.get("recipe") == made_from:
        return known
    drift = measured(one, sources)
    facts = {name: round(value, 4) for name, value in asdict(drift).items()} if drift else {}
    return {"recipe": made_from, "sample": one.sample, "part": one.part, **facts}


def measured(one: Stored, sources: Sources) -> Drift | None:
    """Measure the drift of a preview from its first reference, in the preview's own pixels.

    The sample's mask tells what the edit is to change; without one it is where target and
    reference differ.

    Returns:
        None where reference or target are gone, are of another ratio, or where the edit is to
        change nearly all of the picture.
    """
    output = opened(one.picture)
    reference = sources.whole(one.about["references"][0])
    target = sources.whole(one.about["target"])
    if reference is None or target is None:
        return None
    width, height = output.size
    rounding = (1 + ROUNDED_PIXELS / width) * (1 + ROUNDED_PIXELS / height)
    if not _alike(reference, target, LARGEST_STRETCH) or not _alike(output, target, rounding):
        return None
    reduced = min(1.0, MEASURED_PIXELS / max(output.size))
    size = (round(output.width * reduced), round(output.height * reduced))
    seen, was, wanted = (_values(picture, size) for picture in (output, reference, target))
    masked = _masked(one, sources, size)
    drift = drift_of(was, seen, edited_region(was, wanted) if masked is None else masked)
    if drift is None:
        return None
    return Drift(drift.shift_x / reduced, drift.shift_y / reduced, drift.scale, drift.outside)


def _masked(one: Stored, sources: Sources, size: tuple[int, int]) -> np.ndarray | None:
    """Return where the sample's mask wants something changed, as [height width] of truth values.

    Returns:
        None without a mask, or with one that leaves too little unchanged to measure.
    """
    facts = one.about.get("mask")
    mask = sources.mask(facts) if facts else None
    if mask is None:
        return None
    region = np.asarray(mask.resize(size, Image.Resampling.BOX)) > MASKED
    return None if 1 - region.mean() < LEAST_UNCHANGED else region


def _alike(one: Image.Image, other: Image.Image, stretch: float) -> bool:
    """Return whether two pictures' ratios differ by no more than a factor of `stretch`."""
    ratios = sorted(picture.width / picture.height for picture in (one, other))
    return ratios[1] <= stretch * ratios[0]


def _values(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return the picture at this (width, height) as [height width 3], 0 to 1."""
    shown = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(shown, dtype=np.float64) / 255
