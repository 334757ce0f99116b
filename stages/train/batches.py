"""Which samples make up which step: a pure function of the seed and the step.

Nothing in here moves or remembers; a resumed run asks for step 501 and gets what an
uninterrupted one would have got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...cache.errors import WrongUse
from ..samples import Sample
from .draws import stream

Shape = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Source:
    """The samples of one dataset and how often they are shown.

    Attributes:
        samples: all of them, in the order of the pairs table.
        repeats: extra passes over every sample in an epoch.
        probability: the chance of each pass to happen, drawn anew in each epoch.
        start_step, end_step: the first and the last step it takes part in; steps count from 1.
    """

    name: str
    samples: Sequence[Sample]
    repeats: int = 0
    probability: float = 1.0
    start_step: int = 0
    end_step: int | None = None

    def takes_part(self, step: int) -> bool:
        """Whether this dataset is in the mix at `step`."""
        return self.start_step <= step and (self.end_step is None or step <= self.end_step)


@dataclass(frozen=True)
class _Phase:
    """A stretch of steps with the same datasets: samples and chances of one epoch in it."""

    first_step: int
    samples: list[Sample]
    chances: np.ndarray
    shapes: np.ndarray

    @property
    def every_pass_happens(self) -> bool:
        return bool((self.chances >= 1).all())


@dataclass
class _Epoch:
    """One epoch cut into batches of positions in its phase; `first` counts batches in the phase."""

    phase: _Phase
    number: int
    first: int
    batches: list[np.ndarray] = field(repr=False)


class Order:
    """The order of all samples over all steps.

    An epoch is a seeded permutation of every pass over every sample, cut into batches of one
    shape each; short last batches are kept and no sample is dropped. A step takes the next
    `accumulation` batches; epochs follow each other without a gap. Where a dataset starts or
    ends, a new epoch begins with the datasets that are in the mix from there on.
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, *, batch_size: int, accumulation: int
    ) -> None:
        self._sources, self._seed = sources, seed
        self._batch_size, self._accumulation = batch_size, accumulation
        self._phases: dict[int, _Phase] = {}
        self._epoch: _Epoch | None = None

    def step(self, step: int) -> list[list[Sample]]:
        """The batches of `step` (from 1), each of one shape."""
        phase = self._phase(step)
        first = (step - phase.first_step) * self._accumulation
        return [self._batch(phase, first + index) for index in range(self._accumulation)]

    def steps_for(self, epochs: int) -> int:
        """How many whole steps it takes to show at least `epochs` epochs from the start."""
        phase = self._phase(1)
        if phase.every_pass_happens:
            batches = epochs * len(self._cut(phase, 0))
        else:
            batches = sum(len(self._cut(phase, epoch)) for epoch in range(epochs))
        return -(-batches // self._accumulation)

    def _phase(self, step: int) -> _Phase:
        borders = {1}
        for source in self._sources:
            borders.add(max(source.start_step, 1))
            borders.add(1 if source.end_step is None else source.end_step + 1)
        first_step = max(border for border in borders if border <= step)
        if first_step not in self._phases:
            self._phases[first_step] = self._open_phase(first_step)
        return self._phases[first_step]

    def _open_phase(self, first_step: int) -> _Phase:
        samples: list[Sample] = []
        chances: list[float] = []
        for source in self._sources:
            if source.takes_part(first_step) and source.probability > 0:
                passes = [sample for sample in source.samples for _ in range(source.repeats + 1)]
                samples += passes
                chances += [source.probability] * len(passes)
        if not samples:
            raise WrongUse(
                f"No dataset has samples to train on at step {first_step}.",
                "Change `start_step`, `end_step` or `probability` in the data configuration.",
            )
        names: dict[Shape, int] = {}
        shapes = [names.setdefault(shape_of(sample), len(names)) for sample in samples]
        return _Phase(first_step, samples, np.asarray(chances), np.asarray(shapes))

    def _batch(self, phase: _Phase, index: int) -> list[Sample]:
        epoch = self._epoch_with(phase, index)
        return [phase.samples[place] for place in epoch.batches[index - epoch.first]]

    def _epoch_with(self, phase: _Phase, index: int) -> _Epoch:
        epoch = self._epoch
        if epoch is None or epoch.phase is not phase or index < epoch.first:
            epoch = _Epoch(phase, 0, 0, self._cut(phase, 0))
        while index >= epoch.first + len(epoch.batches):
            ahead = (index - epoch.first) // len(epoch.batches) if phase.every_pass_happens else 1
            epoch = _Epoch(
                phase,
                epoch.number + ahead,
                epoch.first + ahead * len(epoch.batches),
                self._cut(phase, epoch.number + ahead),
            )
        self._epoch = epoch
        return epoch

    def _cut(self, phase: _Phase, epoch: int) -> list[np.ndarray]:
        """Shuffle, group by shape, cut into batches, shuffle the batches."""
        random = stream(self._seed, "order", phase.first_step, epoch)
        places = random.permutation(len(phase.samples))
        if not phase.every_pass_happens:
            kept = places[random.random(len(places)) < phase.chances[places]]
            places = kept if len(kept) else places[:1]
        shapes = phase.shapes[places]
        batches = [
            group[start : start + self._batch_size]
            for shape in np.unique(shapes)
            for group in [places[shapes == shape]]
            for start in range(0, len(group), self._batch_size)
        ]
        return [batches[place] for place in random.permutation(len(batches))]


def shape_of(sample: Sample) -> Shape:
    """What a batch has in common: the size of the target and of each reference, in pixels."""
    return (sample.target.size, *(picture.size for picture in sample.references))
