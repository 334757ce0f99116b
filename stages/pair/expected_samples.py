"""Foresight: the samples that `pair` will most likely find, from names and headers alone.

For `qedit plan`, before anything has run. No picture is decoded and nothing is written, so
what is broken further on than its header is counted as good.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...config.configuration import Configuration
from ..models.flavours import Flavour
from ..pictures.images import Unreadable, header, quiet_decoding, swaps_sides
from ..samples.sample import Sample
from .checks import faults, sample_of
from .folders import scan_all
from .picture_records import Facts
from .wanted_samples import Plan, make_plans


@dataclass(frozen=True)
class Found:
    """What a main dataset seems to hold: samples, and how many more will be rejected."""

    samples: list[Sample]
    rejected: int


def look_ahead(configuration: Configuration, flavour: Flavour) -> dict[str, Found]:
    """The samples of every main and held-out dataset, by its id.

    Their digests are made of paths, so that equal pictures count as several.

    Raises:
        WrongUse: folders, names or captions from which no pairs can be made.
    """
    with quiet_decoding():
        plans = make_plans(configuration, flavour, scan_all(configuration))
        return {plan.main.id: _found(plan, configuration) for plan in plans}


def _found(plan: Plan, configuration: Configuration) -> Found:
    folders = {one.id: Path(one.instance_data_dir or "") for one in configuration.datasets}
    samples, rejected = [], {row.sample for row in plan.rejections}
    for wanted in plan.wanted:
        paths = plan.paths(wanted)
        facts = [
            _facts(folders[dataset.id] / path, name=f"{dataset.id}/{path}")
            for dataset, path in zip(wanted.terms.datasets, paths, strict=True)
        ]
        if faults(wanted.name, paths, facts, wanted.terms):
            rejected.add(wanted.name)
            continue
        samples.append(
            sample_of(
                wanted.name,
                paths,
                facts,
                wanted.terms,
                captions=wanted.captions,
                group=wanted.group,
            )
        )
    return Found(samples, len(rejected))


def _facts(path: Path, *, name: str) -> Facts:
    try:
        with path.open("rb") as file:
            picture, orientation = header(file)
            width, height = picture.size
    except Unreadable as error:
        return Facts(reason=error.reason, detail=error.detail)
    except OSError as error:
        return Facts(reason="not_readable_now", detail=str(error))
    if swaps_sides(orientation):
        width, height = height, width
    return Facts(digest=name, width=width, height=height)
