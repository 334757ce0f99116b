"""Which samples make up which step: a pure function of the seed and the step.

Nothing in here moves or remembers; a resumed run asks for step 501 and gets what an
uninterrupted one would have got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...cache.errors import WrongUse
from ..sample_rows import Rows, Shape, numbered
from ..sample_rows import shape_of as shape_of
from ..samples import Sample
from .draws import seed_of, stream
from .mixture import Mixture, turns

# How much of a batch's image tokens may be padding where samples of several shapes join in it.
MOST_PADDING = 0.03
TOKEN_PIXELS = 16 * 16


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
    """A stretch of steps with the same datasets: what an epoch in it shows.

    A pass shows one of its candidates, which are neighbours in `rows`: a sample alone, or a
    group that takes turns.

    Attributes:
        samples: of every dataset in the mix.
        rows: their places, with those of one group together.
        firsts, counts: of each pass, where its candidates begin and how many there are.
        hashes: of each pass, that of its group; empty where no group has several candidates.
        chances: of each pass to happen.
        shapes: of each row, the number of its sample's shape.
        tokens: of each shape, how many image tokens a sample has.
    """

    first_step: int
    samples: Mixture
    rows: Rows
    firsts: np.ndarray
    counts: np.ndarray
    hashes: np.ndarray
    chances: np.ndarray
    shapes: np.ndarray
    tokens: np.ndarray

    @property
    def every_pass_happens(self) -> bool:
        return bool((self.chances >= 1).all())

    def shown(self, key: int) -> np.ndarray:
        """Which of `rows` each pass shows in the epoch of `key`."""
        if not len(self.hashes):
            return self.firsts
        turn = _mixed(self.hashes ^ np.uint64(key)) % self.counts.astype(np.uint64)
        return self.firsts + turn.astype(np.int64)


@dataclass(frozen=True)
class _Batches(Sequence[np.ndarray]):
    """Batches of `places`: where each begins, and how many there are in it.

    Three columns of numbers: a million batches of one sample each are made in no time.
    """

    places: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        start = self.starts[index]
        return self.places[start : start + self.sizes[index]]


@dataclass
class _Epoch:
    """One epoch cut into batches of rows of its phase; `first` counts batches in the phase."""

    phase: _Phase
    number: int
    first: int
    batches: _Batches = field(repr=False)


class Order:
    """The order of all samples over all steps.

    An epoch is a seeded permutation of every pass over every sample, cut into batches of one
    shape each. What is left over of the shapes joins in batches of its own, shapes of nearly
    as many tokens together, as far as little padding comes of it; with many shapes a step
    would else have one sample instead of a batch. Batches that stay short are kept and no
    sample is dropped. A step takes the next `accumulation` batches; epochs follow each other
    without a gap. Where a dataset starts or ends, a new epoch begins with the datasets that
    are in the mix from there on.
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, *, batch_size: int, accumulation: int
    ) -> None:
        self._sources, self._seed = sources, seed
        self._batch_size, self._accumulation = batch_size, accumulation
        self._phases: dict[int, _Phase] = {}
        self._epoch: _Epoch | None = None

    @property
    def samples(self) -> Mixture:
        """Every sample that any step may show."""
        return Mixture([source.samples for source in self._sources])

    def step(self, step: int) -> list[list[Sample]]:
        """The batches of `step` (from 1); samples of one shape are neighbours in theirs."""
        samples = self._phase(step).samples
        return [[samples[row] for row in batch.tolist()] for batch in self._rows_of(step)]

    def samples_in(self, step: int) -> int:
        """How many samples `step` has."""
        return sum(map(len, self._rows_of(step)))

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
        sources = [
            source
            for source in self._sources
            if source.takes_part(first_step) and source.probability > 0
        ]
        samples = Mixture([source.samples for source in sources])
        if not len(samples):
            raise WrongUse(
                f"No dataset has samples to train on at step {first_step}.",
                "Change `start_step`, `end_step` or `probability` in the data configuration.",
            )
        columns, start = [], 0
        for source in sources:
            columns.append(_passes(source, start))
            start += len(source.samples)
        rows, firsts, counts, hashes, chances = map(np.concatenate, zip(*columns, strict=True))
        known = samples.shapes.numbers[rows]
        tokens = np.asarray([tokens_of(shape) for shape in samples.shapes.distinct])
        shapes = numbered(known)
        return _Phase(
            first_step=first_step,
            samples=samples,
            rows=rows,
            firsts=firsts,
            counts=counts,
            hashes=hashes[: len(counts) if counts.max() > 1 else 0],
            chances=chances,
            shapes=shapes,
            tokens=tokens[known[np.unique(shapes, return_index=True)[1]]],
        )

    def _rows_of(self, step: int) -> list[Rows]:
        """The batches of `step`, as places among the samples of its phase."""
        phase = self._phase(step)
        first = (step - phase.first_step) * self._accumulation
        return [self._batch(phase, first + index) for index in range(self._accumulation)]

    def _batch(self, phase: _Phase, index: int) -> Rows:
        epoch = self._epoch_with(phase, index)
        rows: Rows = phase.rows[epoch.batches[index - epoch.first]]
        return rows

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

    def _cut(self, phase: _Phase, epoch: int) -> _Batches:
        """Shuffle, group by shape, cut into batches, join what is left, shuffle the batches."""
        random = stream(self._seed, "order", phase.first_step, epoch)
        places = random.permutation(len(phase.firsts))
        if not phase.every_pass_happens:
            kept = places[random.random(len(places)) < phase.chances[places]]
            places = kept if len(kept) else places[:1]
        key = seed_of(self._seed, "turns", phase.first_step, epoch)
        shown = phase.shown(key)[places]
        shapes = phase.shapes[shown]
        in_shapes = shown[np.lexsort((shapes, phase.tokens[shapes]))]
        of_each = phase.shapes[in_shapes]
        counts = np.diff(np.flatnonzero(np.diff(of_each, prepend=-1, append=-1)))
        # of each place, its own among those of its shape, and how many of that fill batches
        own = np.arange(len(of_each)) - np.repeat(np.cumsum(counts) - counts, counts)
        is_left = own >= np.repeat(counts - counts % self._batch_size, counts)
        whole, left = in_shapes[~is_left], in_shapes[is_left]
        joined = self._joined(tokens=phase.tokens[phase.shapes[left]])
        sizes = np.full(len(whole) // self._batch_size, self._batch_size)
        sizes = np.concatenate([sizes, np.asarray(joined, np.int64)])
        turn = random.permutation(len(sizes))
        starts = np.cumsum(sizes) - sizes
        return _Batches(np.concatenate([whole, left]), starts[turn], sizes[turn])

    def _joined(self, *, tokens: np.ndarray) -> list[int]:
        """How many neighbours make a batch each, of samples that come with ever more `tokens`."""
        begin, sizes = 0, []
        for end in range(1, len(tokens) + 1):
            full = end - begin == self._batch_size
            if full or end == len(tokens) or padded_share(tokens[begin : end + 1]) > MOST_PADDING:
                sizes.append(end - begin)
                begin = end
        return sizes


def _passes(source: Source, start: int) -> tuple[np.ndarray, ...]:
    """Of a source whose samples begin at `start`: its rows, and what `_Phase` says of passes."""
    rows, sizes, hashes = turns(source.samples, name=source.name)
    passes = source.repeats + 1
    return (
        start + rows,
        np.repeat(start + np.cumsum(sizes) - sizes, passes),
        np.repeat(sizes, passes),
        np.repeat(hashes, passes),
        np.full(len(sizes) * passes, source.probability),
    )


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread every bit of each number over all of them (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def tokens_of(shape: Shape) -> int:
    """The image tokens of a sample: one for each 16x16 pixels of target and references."""
    return sum(width * height // TOKEN_PIXELS for width, height in shape)


def padded_share(tokens: np.ndarray) -> float:
    """How much of a batch is padding where its samples have so many tokens."""
    return 1 - float(tokens.mean()) / float(tokens.max())
