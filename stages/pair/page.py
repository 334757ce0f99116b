"""The report of `pair`: one HTML file that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...cache.files.atomic import sweep
from ...cache.files.decides_nothing import put_text
from ...cache.files.fingerprint import key_of
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..pages.html_page import page_text, picture_link
from ..pictures.images import Unreadable, open_small, quiet_decoding
from ..samples.sample import Picture, Sample
from ..samples.schema import Rejection
from ..samples.table import manifest_in, picture_folders, read_rejections
from .checks import MEANINGS
from .geometry import ratios_differ
from .overview import Overview, overview_of
from .pictures import available_cores

PAGE_FILE = "report.html"
VERSION = 4  # raised whenever the same tables give another page
EXAMPLES = 12  # of each reason
THUMBNAIL_PIXELS = 320  # the longer edge
_QUALITY = 72
_HEAD_CHARACTERS = 400  # of the file: its key stands in there
_KEY = '<meta name="qedit-tables" content="'
# A pixel counts as changed from here on, of 255: below it lies what JPEG does by itself.
_VISIBLE = 28
_COMPARED_PIXELS = 128  # the longer edge

Folders = Mapping[str, Path]


def bring_up_to_date(page: Path, configuration: Configuration, main: Dataset, folder: Path) -> bool:
    """Write the page of the table of `main` in `folder`, unless it is there already.

    Returns:
        Whether it was written.
    """
    manifest = manifest_in(folder)
    assert manifest is not None, "a page is made of a table that is there"
    facts = {name: manifest[name] for name in ("pairs", "rejected_table", "accepted")}
    key = key_of({"version": VERSION, "flavour": configuration.settings.model_flavour, **facts})
    if page.is_file():
        with page.open(encoding="utf-8", errors="replace") as file:
            if f'{_KEY}{key}"' in file.read(_HEAD_CHARACTERS):
                return False
    with quiet_decoding():
        data = _data(configuration, main, folder, manifest)
    sweep(page.parent)  # what a process left that died while it wrote this page
    text = page_text(__package__, data, title="pair report", mark=f'{_KEY}{key}">')
    put_text(page, text)
    return True


def _data(
    configuration: Configuration, main: Dataset, folder: Path, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    memories = {
        dataset.id: configuration.pairs_folder(dataset) for dataset in configuration.datasets
    }
    overview = overview_of(folder / manifest["pairs"], memories, main.id)
    rejections, folders = read_rejections(folder), picture_folders(configuration)
    with ThreadPoolExecutor(available_cores()) as pool:
        samples = list(pool.map(lambda sample: _shown(sample, folders, overview), overview.chosen))
        rejected = [
            {
                "reason": reason,
                "meaning": _meaning(reason),
                "count": count,
                "examples": list(pool.map(lambda row: _example(row, main, folders), rows)),
            }
            for reason, count, rows in _by_reason(rejections, manifest["rejected"])
        ]
    totals = {"samples": manifest["samples"], "rejected": manifest["rejected_samples"]}
    return {
        "dataset": main.id,
        "flavour": str(configuration.settings.model_flavour),
        "held_out": main in configuration.eval_datasets(),
        "accepted": manifest["accepted"],
        "totals": totals | overview.totals,
        "rejected": rejected,
        "warnings": [
            {"code": code, "meaning": _meaning(code), "count": count}
            for code, count in _most_first({**manifest["warnings"], **overview.looks})
        ],
        "meanings": {code: _meaning(code) for sample in samples for code in sample["flags"]},
        "samples": samples,
        **overview.parts,
    }


def _meaning(code: str) -> str:
    return MEANINGS[code].replace("`", "")


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(
        ((code, count) for code, count in counts.items() if count), key=lambda row: -row[1]
    )


def _by_reason(
    rejections: Sequence[Rejection], counts: Mapping[str, int]
) -> list[tuple[str, int, list[Rejection]]]:
    """Return each reason, its count and its first rows; the most frequent one first."""
    rows: dict[str, list[Rejection]] = {reason: [] for reason in counts}
    for row in rejections:
        if len(rows[row.reason]) < EXAMPLES:
            rows[row.reason].append(row)
    return [(reason, count, rows[reason]) for reason, count in _most_first(counts)]


def _example(row: Rejection, main: Dataset, folders: Folders) -> dict[str, Any]:
    # where something is missing, the target that misses it is shown
    shown = main.id if row.reason in ("missing_reference", "missing_mask") else row.dataset
    small = _thumbnail(folders[shown] / row.path) if shown in folders else None
    return {
        "dataset": row.dataset,
        "path": row.path,
        "detail": row.detail,
        "thumbnail": _link(small),
    }


def _shown(sample: Sample, folders: Folders, overview: Overview) -> dict[str, Any]:
    pictures = [sample.target, *sample.references, *([sample.mask] if sample.mask else [])]
    small = [_thumbnail(folders[picture.dataset] / picture.path) for picture in pictures]
    target, *references = map(_picture, pictures, small)
    mask = references.pop() if sample.mask else None
    after, before = small[:2]
    return {
        "name": sample.name,
        "captions": sample.captions,
        "flags": overview.flags[sample.name],
        "edit": share_changed(before, after) if before and after else None,
        "target": target,
        "references": references,
        "mask": mask,
    }


def _picture(picture: Picture, thumbnail: Image.Image | None) -> dict[str, Any]:
    left, top, right, bottom = picture.box
    wide, high = picture.width, picture.height
    crop = (left / wide, top / high, right / wide, bottom / high)
    return {
        "dataset": picture.dataset,
        "path": picture.path,
        "width": wide,
        "height": high,
        "size": picture.size,
        "crop": None if picture.whole else [round(edge, 4) for edge in crop],
        "thumbnail": _link(thumbnail),
    }


def _thumbnail(path: Path) -> Image.Image | None:
    """Make the whole upright picture small; return None where that cannot be done."""
    try:
        if not path.is_file():  # to open a pipe is to wait for whoever writes into it
            return None
        picture = open_small(path, THUMBNAIL_PIXELS)
    except (Unreadable, ValueError, OSError):
        return None
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return picture


def _link(picture: Image.Image | None) -> str | None:
    if picture is None:
        return None
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return picture_link(file.getvalue())


def share_changed(before: Image.Image, after: Image.Image) -> float | None:
    """Return how much of a picture differs visibly, 0 to 1; None for pictures of other ratios."""
    if ratios_differ(before.size, after.size, tolerance=0.04):  # thumbnails are rounded
        return None
    scale = _COMPARED_PIXELS / max(after.size)
    size = (max(round(after.width * scale), 1), max(round(after.height * scale), 1))
    one, two = (
        np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.int16)
        for picture in (before, after)
    )
    return float((np.abs(one - two).max(axis=2) >= _VISIBLE).mean())
