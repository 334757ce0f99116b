"""The phases of training: the datasets in the mix at each step, and what an epoch shows.

The samples of all of them are one sequence, known by columns of numbers.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import overload

import numpy as np

from ....cache.errors import WrongUse
from ....config.datasets import Dataset
from ....config.latent_geometry import image_tokens
from ...samples.lazy_samples import Rows, Shape, Shapes, groups_in, numbered, shapes_in
from ...samples.sample import Sample


class Mixture(Sequence[Sample]):
    """A sequence of the samples of `parts`; a part makes a sample when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self._parts = parts
        self._starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return [self[row] for row in range(len(self))[place]]
        row = range(len(self))[place]
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]

    def __iter__(self) -> Iterator[Sample]:
        return chain.from_iterable(self._parts)

    @cached_property
    def shapes(self) -> Shapes:
        """Return the shape of every sample."""
        numbers: dict[Shape, int] = {}
        columns = [np.empty(0, np.int64)]
        for part in map(shapes_in, self._parts):
            known = [numbers.setdefault(shape, len(numbers)) for shape in part.distinct]
            columns.append(np.asarray(known, np.int64)[part.numbers])
        return Shapes(np.concatenate(columns), tuple(numbers))


@dataclass(frozen=True)
class Source:
    """The samples of one dataset, and how often they are shown.

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

    @classmethod
    def of(cls, main: Dataset, samples: Sequence[Sample]) -> Source:
        """Return `samples` as the source that `main`, of the data configuration, describes."""
        how = main.model_dump(include={"repeats", "probability", "start_step", "end_step"})
        return cls(main.id, samples, **how)

    @property
    def shows(self) -> bool:
        """Return whether it ever shows a sample."""
        return self.probability > 0 and len(self.samples) > 0

    def takes_part(self, step: int) -> bool:
        """Return whether this dataset is in the mix at `step`."""
        return self.start_step <= step and (self.end_step is None or step <= self.end_step)

    def in_words(self) -> str:
        """Return a sentence that says when it takes part, and with how many pairs."""
        until = "on" if self.end_step is None else f"to {self.end_step}"
        share = "" if self.probability > 0 else ", with `probability` 0"
        pairs = f"{len(self.samples)} pair{'' if len(self.samples) == 1 else 's'}"
        return f"{self.name} has {pairs} from step {max(self.start_step, 1)} {until}{share}"


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with the same datasets: what an epoch in it shows.

    A pass shows one of its candidates, which are neighbours in `rows`: a sample alone, or a
    group that takes turns.

    Attributes:
        samples: of every dataset in the mix.
        rows: their places, with those of one group together.
        firsts, counts: of each pass, where its candidates begin and how many there are.
        hashes: of each pass, that of its group; empty where no group has several candidates.
        turns_ahead: of each pass, how many of the same group come before it in an epoch.
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
    turns_ahead: np.ndarray
    chances: np.ndarray
    shapes: np.ndarray
    tokens: np.ndarray

    @cached_property
    def every_pass_happens(self) -> bool:
        """Return whether every pass has the probability 1."""
        return bool((self.chances >= 1).all())

    @cached_property
    def epochs_are_alike(self) -> bool:
        """Return whether every epoch has as many samples of each shape, and so as many batches."""
        if not self.every_pass_happens or not len(self.hashes):
            return self.every_pass_happens
        groups = np.unique(self.firsts)
        least, most = (each.reduceat(self.shapes, groups) for each in (np.minimum, np.maximum))
        return bool((least == most).all())

    def shown(self, key: int) -> np.ndarray:
        """Return which of `rows` each pass shows in the epoch of `key`.

        The passes over one group show one candidate after the other.
        """
        if not len(self.hashes):
            return self.firsts
        counts = self.counts.astype(np.uint64)
        turn = (_mixed(self.hashes ^ np.uint64(key)) % counts + self.turns_ahead) % counts
        shown: np.ndarray = self.firsts + turn.astype(np.int64)
        return shown


def mix_at(sources: Sequence[Source], step: int, *, in_epochs: bool = False) -> list[Source]:
    """Return those of `sources` that have samples to show at `step`.

    Args:
        in_epochs: whether `num_train_epochs` says how long the run is.

    Raises:
        WrongUse: there are none.
    """
    mix = [source for source in sources if source.shows and source.takes_part(step)]
    if not mix:
        before = f", or end the run before with `max_train_steps` {step - 1}" if step > 1 else ""
        if before and in_epochs:
            before += " in place of `num_train_epochs`"
        raise WrongUse(
            f"No dataset has samples to train on at step {step}: "
            f"{'; '.join(source.in_words() for source in sources)}.",
            f"Change `start_step`, `end_step` or `probability` in the data configuration{before}.",
        )
    return mix


def borders_of(sources: Sequence[Source]) -> list[int]:
    """Return the first step of each phase; that of the first is 1."""
    borders = {1}
    for source in sources:
        borders.add(max(source.start_step, 1))
        borders.add(1 if source.end_step is None else source.end_step + 1)
    return sorted(borders)


def open_phase(sources: Sequence[Source], first_step: int) -> Phase:
    """Return the phase of the datasets that are in the mix from `first_step` on.

    Raises:
        WrongUse: there are none.
    """
    mix = mix_at(sources, first_step)
    samples = Mixture([source.samples for source in mix])
    columns, start = [], 0
    for source in mix:
        columns.append(_passes(source, start))
        start += len(source.samples)
    rows, firsts, counts, hashes, turns_ahead, chances = map(
        np.concatenate, zip(*columns, strict=True)
    )
    takes_turns = len(counts) if counts.max() > 1 else 0
    known = samples.shapes.numbers[rows]
    tokens = np.asarray([tokens_of(shape) for shape in samples.shapes.distinct])
    shapes = numbered(known)
    return Phase(
        first_step=first_step,
        samples=samples,
        rows=rows,
        firsts=firsts,
        counts=counts,
        hashes=hashes[:takes_turns],
        turns_ahead=turns_ahead[:takes_turns],
        chances=chances,
        shapes=shapes,
        tokens=tokens[known[np.unique(shapes, return_index=True)[1]]],
    )


def _passes(source: Source, start: int) -> tuple[np.ndarray, ...]:
    """Return the columns of `Phase` for one source, whose samples begin at `start`."""
    rows, sizes, hashes = turns(source.samples, name=source.name)
    passes = source.repeats + 1
    return (
        start + rows,
        np.repeat(start + np.cumsum(sizes) - sizes, passes),
        np.repeat(sizes, passes),
        np.repeat(hashes, passes),
        np.tile(np.arange(passes, dtype=np.uint64), len(sizes)),
        np.full(len(sizes) * passes, source.probability),
    )


def turns(samples: Sequence[Sample], *, name: str) -> tuple[Rows, Rows, np.ndarray]:
    """Return the rows with those of one group together, and the groups' sizes and hashes.

    A sample without a group is one of its own, and comes after all groups.

    Args:
        name: of the dataset, which goes into the hashes.
    """
    encoded = groups_in(samples).dictionary_encode()
    groups = encoded.dictionary.to_pylist()
    numbers = encoded.indices.to_numpy()
    is_alone = np.asarray([not group for group in groups], bool)[numbers]
    rows = np.argsort(np.where(is_alone, len(groups), numbers), kind="stable")
    sizes = np.bincount(numbers[~is_alone], minlength=len(groups))
    named = [number for number, group in enumerate(groups) if group]
    hashes = np.asarray([_hash(f"{name}/{groups[number]}") for number in named], np.uint64)
    alone = int(is_alone.sum())
    return (
        rows,
        np.concatenate([sizes[named], np.ones(alone, np.int64)]).astype(np.int64),
        np.concatenate([hashes, np.zeros(alone, np.uint64)]),
    )


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread every bit of each number over all of them (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def tokens_of(shape: Shape) -> int:
    """Return the image tokens of a sample: one for each 16x16 pixels of target and references."""
    return sum(map(image_tokens, shape))
