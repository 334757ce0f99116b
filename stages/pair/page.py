"""Page: what `pair` found, as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...cache.files.atomic import sweep, write_text
from ...cache.files.fingerprint import key_of
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..pictures.images import quiet_decoding
from ..samples.sample import Picture, Sample
from ..samples.schema import Rejection
from ..samples.table import manifest_in, read_rejections
from .checks import MEANINGS
from .overview import Overview, overview_of
from .pictures import available_cores
from .thumbnails import as_link, share_changed, thumbnail_of

PAGE_FILE = "report.html"
VERSION = 4  # raised whenever the same tables give another page
EXAMPLES = 12  # of each reason
_HEAD_CHARACTERS = 400  # of the file: its key stands in there


@dataclass(frozen=True)
class Source:
    """Where a page comes from.

    Attributes:
        folder: of the table.
        pictures: dataset id -> its folder of pictures.
        memories: dataset id -> the folder of what is remembered of its pictures.
    """

    main: Dataset
    folder: Path
    flavour: str
    held_out: bool
    pictures: Mapping[str, Path]
    memories: Mapping[str, Path]


def source_of(configuration: Configuration, main: Dataset, folder: Path) -> Source:
    """Everything that the page of `main`, whose table lies in `folder`, is made from."""
    datasets = [one for one in configuration.datasets if one.instance_data_dir is not None]
    return Source(
        main=main,
        folder=folder,
        flavour=str(configuration.settings.model_flavour),
        held_out=main in configuration.eval_datasets(),
        pictures={one.id: one.instance_data_dir for one in datasets if one.instance_data_dir},
        memories={one.id: configuration.pairs_folder(one) for one in datasets},
    )


def bring_up_to_date(page: Path, source: Source) -> bool:
    """Have the page of these tables at `page`; whether it had to be written."""
    manifest = manifest_in(source.folder)
    assert manifest is not None, "a page is made of a table that is there"
    facts = {name: manifest[name] for name in ("pairs", "rejected_table", "accepted")}
    key = key_of({"version": VERSION, "flavour": source.flavour, **facts})
    if _key_in(page) == key:
        return False
    with quiet_decoding():
        data = _data(source, manifest)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    text = text.encode("utf-8", "backslashreplace").decode()
    template = (files("qedit.stages.pair") / "page.html").read_text(encoding="utf-8")
    before, after = template.replace("@KEY@", key).split("@DATA@")
    sweep(page.parent)  # what a process left that died while it wrote this page
    write_text(page, f"{before}{text}{after}")
    return True


def _key_in(page: Path) -> str:
    if not page.is_file():
        return ""
    with page.open(encoding="utf-8", errors="replace") as file:
        start = file.read(_HEAD_CHARACTERS)
    _, _, behind = start.partition('name="qedit-tables" content="')
    return behind.partition('"')[0]


def _data(source: Source, manifest: Mapping[str, Any]) -> dict[str, Any]:
    overview = overview_of(source.folder / manifest["pairs"], source.memories, source.main.id)
    rejections = read_rejections(source.folder)
    with ThreadPoolExecutor(available_cores()) as pool:
        samples = list(pool.map(lambda one: _shown(one, source, overview), overview.chosen))
        rejected = [
            {
                "reason": reason,
                "meaning": _meaning(reason),
                "count": count,
                "examples": list(pool.map(lambda row: _example(row, source), rows)),
            }
            for reason, count, rows in _by_reason(rejections, manifest["rejected"])
        ]
    return {
        "dataset": source.main.id,
        "flavour": source.flavour,
        "held_out": source.held_out,
        "accepted": manifest["accepted"],
        "totals": {
            "samples": manifest["samples"],
            "rejected": manifest["rejected_samples"],
            **overview.totals,
        },
        "rejected": rejected,
        "warnings": [
            {"code": code, "meaning": _meaning(code), "count": count}
            for code, count in _most_first({**manifest["warnings"], **overview.looks})
        ],
        "meanings": {code: _meaning(code) for one in samples for code in one["flags"]},
        "buckets": overview.buckets,
        "lengths": overview.lengths,
        "captions": overview.caption_words,
        "alike": overview.alike,
        "alike_groups": overview.alike_groups,
        "samples": samples,
        "rule": overview.rule,
    }


def _meaning(code: str) -> str:
    return MEANINGS[code].replace("`", "")


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((code, count) for code, count in counts.items() if count), key=lambda o: -o[1])


def _by_reason(
    rejections: Sequence[Rejection], counts: Mapping[str, int]
) -> list[tuple[str, int, list[Rejection]]]:
    """Each reason, its count and its first rows; the most frequent one first."""
    rows: dict[str, list[Rejection]] = {reason: [] for reason in counts}
    for row in rejections:
        if len(rows[row.reason]) < EXAMPLES:
            rows[row.reason].append(row)
    return [(reason, count, rows[reason]) for reason, count in _most_first(counts)]


def _example(row: Rejection, source: Source) -> dict[str, Any]:
    # of what is missing, the target that misses it
    seen = source.main.id if row.reason in ("missing_reference", "missing_mask") else row.dataset
    folder = source.pictures.get(seen)
    small = thumbnail_of(folder / row.path) if folder else None
    return {
        "dataset": row.dataset,
        "path": row.path,
        "detail": row.detail,
        "thumbnail": as_link(small),
    }


def _shown(sample: Sample, source: Source, overview: Overview) -> dict[str, Any]:
    target, first, *others = (
        thumbnail_of(source.pictures[one.dataset] / one.path)
        for one in (sample.target, *sample.references)
    )
    mask = None
    if sample.mask:
        small = thumbnail_of(source.pictures[sample.mask.dataset] / sample.mask.path)
        mask = _picture(sample.mask, as_link(small))
    return {
        "name": sample.name,
        "captions": sample.captions,
        "flags": overview.flags[sample.name],
        "edit": None if target is None or first is None else share_changed(first, target),
        "target": _picture(sample.target, as_link(target)),
        "references": [
            _picture(one, as_link(seen))
            for one, seen in zip(sample.references, (first, *others), strict=True)
        ],
        "mask": mask,
    }


def _picture(picture: Picture, thumbnail: str | None) -> dict[str, Any]:
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
        "thumbnail": thumbnail,
    }
