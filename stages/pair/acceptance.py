"""Judgement: every wanted sample, by what its pictures are, is accepted or turned away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..samples.sample import Sample
from ..samples.schema import Rejection
from .checks import faults, sample_of, warnings_of
from .folders import Scans
from .picture_records import Facts, Memory, PlacesArray
from .pictures import Task
from .wanted_samples import Plan, Wanted

Memories = Mapping[str, Memory]


@dataclass(frozen=True)
class Judged:
    """What the table of one main dataset will hold: its rows are made when they are written.

    Attributes:
        accepted: what is wanted and without a fault.
        copies: digests of targets that several files hold.
    """

    plan: Plan
    memories: Memories
    accepted: Sequence[Wanted]
    copies: frozenset[str]
    rejections: Sequence[Rejection]

    def rows(self) -> Iterator[tuple[Sample, tuple[str, ...]]]:
        """Each sample with its warning codes, one after the other."""
        for wanted in self.accepted:
            facts = _facts_of(wanted, self.memories)
            sample = sample_of(
                wanted.name,
                self.plan.paths(wanted),
                facts,
                wanted.terms,
                captions=wanted.captions,
                group=wanted.group,
            )
            yield sample, warnings_of(sample, facts, self.copies)


@dataclass(frozen=True)
class Unknown:
    """The pictures that samples want and nothing is remembered of, each once.

    Attributes:
        places: by dataset id.
    """

    places: Mapping[str, PlacesArray]

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def tasks(self, memories: Memories, scans: Scans) -> Iterator[Task]:
        """What is to be looked at; made when it is asked for, since they may be millions."""
        for name, places in self.places.items():
            for place in places:
                yield Task(scans[name].folder, memories[name], int(place))


def unknown_in(plans: Iterable[Plan], memories: Memories) -> Unknown:
    """Every picture of a sample of `plans` that has yet to be looked at."""
    asked = {name: bytearray(len(memory.files)) for name, memory in memories.items()}
    for plan in plans:
        for wanted in plan.wanted:
            for name, place in wanted.pictures():
                asked[name][place] = True
    return Unknown(
        {
            name: np.flatnonzero(np.frombuffer(marks, bool) & ~memories[name].known())
            for name, marks in asked.items()
        }
    )


def judge(plan: Plan, memories: Memories) -> Judged:
    """Accept what is without a fault; every picture must have been looked at."""
    accepted, rejections = [], list(plan.rejections)
    for wanted in plan.wanted:
        facts = _facts_of(wanted, memories)
        if wrong := faults(wanted.name, plan.paths(wanted), facts, wanted.terms):
            rejections += wrong
        else:
            accepted.append(wanted)
    rejections.sort()
    # the same file in several samples, each with another reference, is no copy
    targets = np.unique([wanted.places[0] for wanted in accepted]).astype(np.int64)
    copies = memories[plan.main.id].copies_among(targets)
    return Judged(plan, memories, accepted, copies, rejections)


def _facts_of(wanted: Wanted, memories: Memories) -> list[Facts]:
    """What is known of the target, then of each reference, then of the mask."""
    return [memories[name][place] for name, place in wanted.pictures()]
