"""The order of training: the samples of each step, as a pure function of the seed and the step.

Nothing in here has a state: a resumed run asks for step 501 and gets what an
uninterrupted one would have got.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, repeat, takewhile
from typing import Any

import numpy as np

from ....config.settings import Settings
from ...samples.lazy_samples import Rows
from ...samples.lazy_samples import shape_of as shape_of
from ...samples.sample import Sample
from .phases import Mixture, Phase, borders_of, mix_at, open_phase
from .phases import Source as Source
from .phases import tokens_of as tokens_of
from .seeds import seed_of, stream

# How much of a batch's image tokens may be padding where samples of several shapes join in it.
MOST_PADDING = 0.03


@dataclass(frozen=True)
class _Batches(Sequence[np.ndarray]):
    """Batches of `places`, given by the start and the size of each.

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

    phase: Phase
    number: int
    first: int
    batches: _Batches = field(repr=False)


class Order:
    """Decides which samples each step shows.

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
        self._borders = borders_of(sources)
        self._phases: dict[int, Phase] = {}
        self._epoch: _Epoch | None = None

    @classmethod
    def of(cls, sources: Sequence[Source], settings: Settings) -> Order:
        """Return the order of the training that `settings` ask for."""
        return cls(
            sources,
            settings.seed,
            batch_size=settings.train_batch_size,
            accumulation=settings.gradient_accumulation_steps,
        )

    @property
    def samples(self) -> Mixture:
        """Return every sample that any step may show."""
        return Mixture([source.samples for source in self._sources])

    def step(self, step: int) -> list[list[Sample]]:
        """Return the batches of `step` (from 1); samples of one shape are neighbours in theirs."""
        samples = self._phase(step).samples
        return [[samples[row] for row in batch.tolist()] for batch in self._rows_of(step)]

    def samples_in(self, step: int) -> int:
        """Return how many samples `step` has."""
        return sum(map(len, self._rows_of(step)))

    def refuse_gaps(self, steps: int) -> None:
        """Raise if one of the first `steps` steps would have nothing to show.

        Raises:
            WrongUse: the message names the step, and when each dataset takes part.
        """
        for border in self._borders:
            if border <= steps:
                mix_at(self._sources, border)

    def steps_for(self, epochs: int) -> int:
        """Return how many whole steps it takes to show every dataset at least `epochs` times.

        A pass that is cut short because the mix changes does not count. A dataset that ends
        before it has been shown so often counts up to there; see `short_of`.

        Raises:
            WrongUse: every dataset ends before.
        """
        return self._length(epochs)[0]

    def short_of(self, epochs: int) -> dict[str, int]:
        """Return how often each dataset is shown that ends before `epochs` times."""
        return {name: epochs - left for name, left in self._length(epochs)[1].items()}

    def _length(self, epochs: int) -> tuple[int, dict[str, int]]:
        """Return the steps for so many epochs, and how many the datasets that end before lack."""
        lacking = {source.name: epochs for source in self._sources if source.shows}
        for first, border in pairwise([*self._borders, None]):
            assert first is not None, "only the last phase has no end"
            names = [source.name for source in mix_at(self._sources, first, in_epochs=True)]
            phase = self._phase(first)
            most = max(lacking.get(name, 0) for name in names)
            end = first - 1 + self._steps_in(phase, most)
            awaited = any(source.shows and source.start_step > first for source in self._sources)
            if border is None or (end < border and not awaited):
                break
            shown = self._epochs_in(phase, border - first, most=most)
            for name in names:
                lacking[name] = max(0, lacking[name] - shown)
        ended = {name: lacks for name, lacks in lacking.items() if lacks and name not in names}
        return end, ended

    def _epochs_in(self, phase: Phase, steps: int, *, most: int) -> int:
        """Return how many whole epochs the first `steps` steps of `phase` have, at most `most`."""
        batches, ends = steps * self._accumulation, accumulate(self._lengths(phase, most))
        return sum(1 for _ in takewhile(lambda end: end <= batches, ends))

    def _steps_in(self, phase: Phase, epochs: int) -> int:
        """Return how many steps `epochs` epochs of `phase` take."""
        return -(-sum(self._lengths(phase, epochs)) // self._accumulation)

    def _lengths(self, phase: Phase, epochs: int) -> Iterator[int]:
        """Yield how many batches each of the first `epochs` epochs of `phase` has."""
        if phase.epochs_are_alike:
            return repeat(len(self._cut(phase, 0)), epochs)
        return (len(self._cut(phase, epoch)) for epoch in range(epochs))

    def _phase(self, step: int) -> Phase:
        first_step = max(border for border in self._borders if border <= step)
        if first_step not in self._phases:
            self._phases[first_step] = open_phase(self._sources, first_step)
        return self._phases[first_step]

    def _rows_of(self, step: int) -> list[Rows]:
        """Return the batches of `step`, as places among the samples of its phase."""
        phase = self._phase(step)
        first = (step - phase.first_step) * self._accumulation
        rows = []
        for index in range(first, first + self._accumulation):
            epoch = self._epoch_with(phase, index)
            rows.append(phase.rows[epoch.batches[index - epoch.first]])
        return rows

    def _epoch_with(self, phase: Phase, index: int) -> _Epoch:
        epoch = self._epoch
        if epoch is None or epoch.phase is not phase or index < epoch.first:
            epoch = _Epoch(phase, 0, 0, self._cut(phase, 0))
        while index >= epoch.first + len(epoch.batches):
            ahead = (index - epoch.first) // len(epoch.batches) if phase.epochs_are_alike else 1
            epoch = _Epoch(
                phase,
                epoch.number + ahead,
                epoch.first + ahead * len(epoch.batches),
                self._cut(phase, epoch.number + ahead),
            )
        self._epoch = epoch
        return epoch

    def _cut(self, phase: Phase, epoch: int) -> _Batches:
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
        """Return the sizes of batches of neighbours, of samples that are sorted by `tokens`."""
        begin, sizes = 0, []
        for end in range(1, len(tokens) + 1):
            full = end - begin == self._batch_size
            if full or end == len(tokens) or padded_share(tokens[begin : end + 1]) > MOST_PADDING:
                sizes.append(end - begin)
                begin = end
        return sizes


@dataclass(frozen=True)
class Orders:
    """Decides the samples of each step of a run whose data have changed.

    Attributes:
        parts: the first step of each order, those of the first steps first.
    """

    parts: Sequence[tuple[int, Order | Orders]]

    @property
    def samples(self) -> Mixture:
        """Return every sample that any step may show, the newest ones first."""
        return Mixture([order.samples for _, order in reversed(self.parts)])

    def step(self, step: int) -> list[list[Sample]]:
        """Return the batches of `step`, as `Order.step` does."""
        return self._at(step).step(step)

    def samples_in(self, step: int) -> int:
        """Return how many samples `step` has."""
        return self._at(step).samples_in(step)

    def _at(self, step: int) -> Order | Orders:
        return next(order for first, order in reversed(self.parts) if first <= step)


def padded_share(tokens: np.ndarray) -> float:
    """Return the share of a batch that is padding.

    Args:
        tokens: of each sample of the batch."""
    return 1 - float(tokens.mean()) / float(tokens.max())
