"""Acceptance: every wanted sample is accepted or rejected by what its pictures are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ...config.configuration import Configuration
from ..models.flavours import Flavour
from ..pictures.images import Unreadable, quiet_decoding, size_in_header
from ..samples.sample import Sample
from ..samples.schema import Rejection
from .checks import faults, sample_of, warnings_of
from .folders import scan_all
from .picture_records import Facts, Memory, PlacesArray
from .scan import Scan
from .wanted_samples import Plan, Wanted, make_plans


@runtime_checkable
class KnownPictures(Protocol):
    """The facts of a dataset's pictures by their places."""

    def __getitem__(self, place: int, /) -> Facts: ...


@dataclass(frozen=True)
class Judged:
    """The samples of one main dataset: `accepted` ones have no fault.

    Attributes:
        known: dataset id -> what is known of its pictures.
    """

    plan: Plan
    known: Mapping[str, KnownPictures]
    accepted: Sequence[Wanted]
    rejections: Sequence[Rejection]

    @property
    def rejected(self) -> int:
        """The number of rejected samples; one may have several faults."""
        return len({row.sample for row in self.rejections})

    def rows(self, copies: Collection[str] = ()) -> Iterator[tuple[Sample, tuple[str, ...]]]:
        """Make each accepted sample and its warning codes, one after the other.

        Args:
            copies: digests of targets that several files hold.
        """
        for wanted in self.accepted:
            facts = _facts_of(wanted, self.known)
            sample = sample_of(
                wanted.name,
                self.plan.paths(wanted),
                facts,
                wanted.terms,
                captions=wanted.captions,
                group=wanted.group,
            )
            yield sample, warnings_of(sample, facts, copies)

    def target_places(self) -> PlacesArray:
        """Return the place of each accepted target once, though several samples may have it."""
        return np.unique([wanted.places[0] for wanted in self.accepted]).astype(np.int64)


def judge(plan: Plan, known: Mapping[str, KnownPictures]) -> Judged:
    """Accept the samples without a fault; every picture must have been examined."""
    accepted, rejections = [], list(plan.rejections)
    for wanted in plan.wanted:
        facts = _facts_of(wanted, known)
        if wrong := faults(wanted.name, plan.paths(wanted), facts, wanted.terms):
            rejections += wrong
        else:
            accepted.append(wanted)
    return Judged(plan, known, accepted, sorted(rejections))


def unknown_places(plans: Iterable[Plan], memories: Mapping[str, Memory]) -> dict[str, PlacesArray]:
    """Return by dataset the places of wanted pictures that have yet to be examined, each once."""
    asked = {name: bytearray(len(memory.files)) for name, memory in memories.items()}
    for plan in plans:
        for wanted in plan.wanted:
            for name, place in wanted.pictures():
                asked[name][place] = True
    return {
        name: np.flatnonzero(np.frombuffer(marks, bool) & ~memories[name].known())
        for name, marks in asked.items()
    }


class _Headers(dict[int, Facts]):
    """The facts that the headers of a folder's pictures tell; each header is read once.

    Digests are made of paths, so equal pictures count as several.
    """

    def __init__(self, scan: Scan, dataset: str) -> None:
        self._scan, self._dataset = scan, dataset

    def __missing__(self, place: int) -> Facts:
        path = self._scan.pictures.paths[place]
        try:
            width, height = size_in_header(self._scan.folder / path)
        except Unreadable as error:
            facts = Facts(reason=error.reason, detail=error.detail)
        else:
            facts = Facts(f"{self._dataset}/{path}", width, height)
        self[place] = facts
        return facts


def look_ahead(
    configuration: Configuration, flavour: Flavour
) -> tuple[dict[str, list[Sample]], int]:
    """Judge the samples of every main and held-out dataset by names and headers alone.

    `qedit plan` does this before anything has run. Nothing is decoded or written, so a picture
    that is broken behind its header counts as sound.

    Returns:
        Dataset id -> its samples, and how many more will be rejected.

    Raises:
        WrongUse: folders, names or captions from which no pairs can be made.
    """
    with quiet_decoding():
        scans = scan_all(configuration)
        headers = {name: _Headers(scan, name) for name, scan in scans.items()}
        plans = make_plans(configuration, flavour, scans)
        judged = {plan.main.id: judge(plan, headers) for plan in plans}
    samples = {name: [sample for sample, _ in checked.rows()] for name, checked in judged.items()}
    return samples, sum(checked.rejected for checked in judged.values())


def _facts_of(wanted: Wanted, known: Mapping[str, KnownPictures]) -> list[Facts]:
    """Return what is known of the target, then of each reference, then of the mask."""
    return [known[name][place] for name, place in wanted.pictures()]
