"""Sheets of a run: one of each preview step, and a film strip of each sample over the steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..pictures.contact_sheet import Row, sheet
from ..run_output.previews import PREVIEWS, SHEET_FILE, Part, Stored, stem_of, step_folder
from .pictures import Sources, key_of_pictures, made_from, opened, picture_path, save

VERSION = "3"  # raised whenever the same pictures give another sheet
STRIPS = "strips"
SMALLEST_CELL, LARGEST_CELL = 224, 400
MOST_FRAMES = 12

ByStep = Mapping[int, Mapping[Part, Stored]]


def bring_sheets_up_to_date(
    output_dir: Path, stored: Sequence[Stored], sources: Sources
) -> list[Path]:
    """Draw every sheet and strip whose pictures have changed; where the sheets lie, by step.

    Args:
        stored: previews whose pictures are there.
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
    """references | base | now | EMA | target, a row for each sample; at step 0 the base alone."""
    path = step_folder(output_dir, step) / SHEET_FILE
    shown = {name: by_step for name, by_step in samples.items() if step in by_step}
    after: tuple[Part, ...] = ("now", "ema")
    there = [part for part in after if any(part in one[step] for one in shown.values())]
    parts: list[Part] = ["base", *there]
    chosen = {
        name: {part: one.get(0 if part == "base" else step, {}).get(part) for part in parts}
        for name, one in shown.items()
    }
    flat = [one for row in chosen.values() for one in row.values()]
    key = key_of_pictures(VERSION, *(one.recipe if one else "" for one in flat))
    if made_from(path) == key:
        return path
    rows: list[Row] = []
    for row in chosen.values():
        first = next(one for one in row.values() if one)
        pictures = [(opened(picture_path(one)),) if one else () for one in row.values()]
        references, target = _sources_of(first, sources)
        rows.append(Row((references, *pictures, target), str(first.about["caption"])))
    many = any(len(row.columns[0]) > 1 for row in rows)
    names = {"base": "base model", "now": f"step {step}", "ema": f"step {step}, EMA"}
    labels = ["references" if many else "reference", *(names[part] for part in parts), "target"]
    title = f"{output_dir.absolute().name}: " + (f"step {step}" if step else "before training")
    picture = sheet(labels, rows, title=title, cell=_cell(rows))
    save(picture, path, recipe=key, about={"step": step})
    return path


def _strip(path: Path, by_step: ByStep, sources: Sources) -> None:
    """One sample from left to right through the steps; below it the same of the average."""
    steps = thinned([step for step in sorted(by_step) if step], most=MOST_FRAMES)
    base = by_step.get(0, {}).get("base")
    after: tuple[Part, ...] = ("now", "ema")
    frames = {
        part: [by_step[step].get(part) for step in steps]
        for part in after
        if any(part in by_step[step] for step in steps)
    }
    if not frames:
        return
    first = next(one for row in frames.values() for one in row if one)
    flat = [base, *(one for row in frames.values() for one in row)]
    key = key_of_pictures(VERSION, *(one.recipe if one else "" for one in flat))
    if made_from(path) == key:
        return
    references, target = _sources_of(first, sources)
    rows: list[Row] = []
    for row in frames.values():
        pictures = [(opened(picture_path(one)),) if one else () for one in row]
        is_first = not rows
        rows.append(
            Row(
                (
                    references if is_first else "average (EMA)",
                    (opened(picture_path(base)),) if base and is_first else (),
                    *pictures,
                    target if is_first else (),
                ),
                str(first.about["caption"]) if is_first else "",
            )
        )
    labels = ["reference", "base model", *(f"step {step}" for step in steps), "target"]
    picture = sheet(labels, rows, title=first.sample, cell=_cell(rows, largest=288))
    save(picture, path, recipe=key, about={"sample": first.sample})


def thinned(values: Sequence[int], *, most: int) -> list[int]:
    """At most `most` of `values`, evenly, the first and the last among them.

    >>> thinned(range(10), most=4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _sources_of(
    stored: Stored, sources: Sources
) -> tuple[tuple[Image.Image, ...], tuple[Image.Image, ...]]:
    """The references and the target, as far as they are still there."""
    paths = [sources.small(facts) for facts in stored.about["references"]]
    target = sources.small(stored.about["target"])
    return (
        tuple(opened(path) for path in paths if path),
        (opened(target),) if target else (),
    )


def _cell(rows: Sequence[Row], *, largest: int = LARGEST_CELL) -> int:
    """As large as the previews, within what a screen shows."""
    edges = [
        max(picture.size)
        for row in rows
        for pictures in row.columns[1:-1]
        if not isinstance(pictures, str)
        for picture in pictures
    ]
    return min(max(max(edges, default=0), SMALLEST_CELL), largest)
