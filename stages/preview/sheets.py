"""The sheets of a run: one for each preview step, and a strip of each sample over the steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..pictures.contact_sheet import Row, sheet
from ..run_output.previews import PREVIEWS, SHEET_FILE, Part, Stored, stem_of, step_folder, thinned
from .pictures import Sources, key_of_pictures, made_from, opened, save

VERSION = "3"  # raised whenever the same pictures give another sheet
STRIPS = "strips"
SMALLEST_CELL, LARGEST_CELL = 224, 400
MOST_FRAMES = 12
TRAINED: tuple[Part, ...] = ("now", "ema")

ByStep = Mapping[int, Mapping[Part, Stored]]


def bring_sheets_up_to_date(
    output_dir: Path, stored: Sequence[Stored], sources: Sources
) -> list[Path]:
    """Draw every sheet and strip whose pictures have changed.

    Args:
        stored: previews whose pictures are there.

    Returns:
        Where the sheets lie, by step.
    """
    samples: dict[str, dict[int, dict[Part, Stored]]] = defaultdict(lambda: defaultdict(dict))
    for one in stored:
        samples[one.sample][one.step][one.part] = one
    steps = sorted({one.step for one in stored})
    sheets = [_step_sheet(output_dir, step, samples, sources=sources) for step in steps]
    for place, (sample, by_step) in enumerate(samples.items()):
        path = output_dir / PREVIEWS / STRIPS / f"{stem_of(place, sample)}.png"
        _strip(path, by_step, sources)
    return sheets


def _step_sheet(
    output_dir: Path, step: int, samples: Mapping[str, ByStep], *, sources: Sources
) -> Path:
    """Draw references | base | now | EMA | target, a row a sample; at step 0 the base alone."""
    path = step_folder(output_dir, step) / SHEET_FILE
    shown = [by_step for by_step in samples.values() if step in by_step]
    there = [part for part in TRAINED if any(part in by_step[step] for by_step in shown)]
    chosen = [
        [by_step.get(0, {}).get("base"), *(by_step[step].get(part) for part in there)]
        for by_step in shown
    ]
    key = _key(chosen)
    if made_from(path) == key:
        return path
    rows: list[Row] = []
    for previews in chosen:
        first = next(one for one in previews if one)
        references, target = _sources_of(first, sources)
        pictures = map(_picture, previews)
        rows.append(Row((references, *pictures, target), str(first.about["caption"])))
    many = any(len(row.columns[0]) > 1 for row in rows)
    names = {"now": f"step {step}", "ema": f"step {step}, EMA"}
    reference = "references" if many else "reference"
    labels = [reference, "base model", *(names[part] for part in there), "target"]
    title = f"{output_dir.absolute().name}: " + (f"step {step}" if step else "before training")
    picture = sheet(labels, rows, title=title, cell=_cell(rows))
    save(picture, path, recipe=key, about={"step": step})
    return path


def _strip(path: Path, by_step: ByStep, sources: Sources) -> None:
    """Draw one sample from left to right through the steps; below it the same of the average."""
    steps = thinned([step for step in sorted(by_step) if step], most=MOST_FRAMES)
    base = by_step.get(0, {}).get("base")
    frames = [
        [by_step[step].get(part) for step in steps]
        for part in TRAINED
        if any(part in by_step[step] for step in steps)
    ]
    if not frames:
        return
    key = _key([[base], *frames])
    if made_from(path) == key:
        return
    first = next(one for row in frames for one in row if one)
    references, target = _sources_of(first, sources)
    now, *average = [tuple(map(_picture, row)) for row in frames]
    rows = [Row((references, _picture(base), *now, target), str(first.about["caption"]))]
    rows += [Row(("average (EMA)", (), *pictures, ()), "") for pictures in average]
    labels = ["reference", "base model", *(f"step {step}" for step in steps), "target"]
    picture = sheet(labels, rows, title=first.sample, cell=_cell(rows, largest=288))
    save(picture, path, recipe=key, about={"sample": first.sample})


def _key(rows: Sequence[Sequence[Stored | None]]) -> str:
    recipes = [one.recipe if one else "" for row in rows for one in row]
    return key_of_pictures(VERSION, *recipes)


def _picture(stored: Stored | None) -> tuple[Image.Image, ...]:
    return (opened(stored.picture),) if stored else ()


def _sources_of(
    stored: Stored, sources: Sources
) -> tuple[tuple[Image.Image, ...], tuple[Image.Image, ...]]:
    """Return the references and the target, as far as they are still there."""
    paths = [sources.small(facts) for facts in stored.about["references"]]
    target = sources.small(stored.about["target"])
    return (
        tuple(opened(path) for path in paths if path),
        (opened(target),) if target else (),
    )


def _cell(rows: Sequence[Row], *, largest: int = LARGEST_CELL) -> int:
    """Return the edge of a cell in pixels: as large as the previews, within what a screen shows."""
    edges = [
        max(picture.size)
        for row in rows
        for pictures in row.columns[1:-1]
        if not isinstance(pictures, str)
        for picture in pictures
    ]
    return min(max(max(edges, default=0), SMALLEST_CELL), largest)
