"""Batches as tensors: rows read from the stores, with the noise, sigma and caption of each sample.

What is drawn for a sample depends on the seed, the step and the sample's position in the step,
so it is the same with any number of processes and after any resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ....config.latent_geometry import PATCH_LATENTS
from ...samples.sample import NULL_CAPTION, Sample
from ...stores.run_stores import RunStores
from ...stores.sample_rows import naming_damaged, read_embeds, read_latents, read_weights
from .batches import Order, Orders, shape_of
from .scheduled_sampling import Rollouts
from .seeds import stream
from .sigmas import Sigmas

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Samples of one shape.

    Attributes:
        first_position: the place of the first sample in its step.
        names, captions: of the samples; a dropped caption is the null caption.
        embeds: texts, with zeros to the right of the shorter ones.
        text_lengths: how many tokens of each text are real.
        sigma: exact noise levels; the forward rounds them for the conditioning.
        weights: where the loss counts, and how much; None counts everything alike.
        rollouts: by how many steps each sample is rolled out; empty where none is.
        joins: whether it goes through the model together with the batch before it, which is
            of another shape.
    """

    first_position: int
    names: tuple[str, ...]
    captions: tuple[str, ...]
    target: Float[Tensor, "batch channel height width"]
    references: tuple[Float[Tensor, "batch channel _ _"], ...]
    embeds: Float[Tensor, "batch token dim"]
    text_lengths: tuple[int, ...]
    noise: Float[Tensor, "batch channel height width"]
    sigma: Float[Tensor, " batch"]
    weights: Float[Tensor, "batch 1 height width"] | None = None
    rollouts: tuple[int, ...] = ()
    joins: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def image_tokens(self) -> int:
        """Return the image tokens of one sample: target plus references."""
        pictures = (self.target, *self.references)
        return (
            sum(latents.shape[-2] * latents.shape[-1] for latents in pictures) // PATCH_LATENTS**2
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `change` applied to each of its tensors."""
        return replace(
            self,
            target=change(self.target),
            references=tuple(map(change, self.references)),
            embeds=change(self.embeds),
            noise=change(self.noise),
            sigma=change(self.sigma),
            weights=None if self.weights is None else change(self.weights),
        )


@dataclass(frozen=True)
class Feed:
    """Reads the batches of each step: everything in them is a function of (seed, step).

    Attributes:
        rollouts: which samples are rolled out; None rolls out none.
        rank, world: this process and how many share each step; see `share_of`.
    """

    order: Order | Orders
    stores: RunStores
    sigmas: Sigmas
    seed: int
    caption_dropout: float = 0.0
    rank: int = 0
    world: int = 1
    rollouts: Rollouts | None = None

    def samples_in(self, step: int) -> int:
        """Return how many samples `step` has over all processes."""
        return self.order.samples_in(step)

    def step(self, step: int) -> list[Batch]:
        """Return this process's batches of `step`, on the CPU; a share may have none.

        Latents and embeds are as stored, noise is in float32.

        Raises:
            Damaged: a row's bytes are not those that were written.
        """
        batches: list[Batch] = []
        for part in share_of(self.order.step(step), self.rank, self.world):
            position = part.first_position
            for _, alike in groupby(part.items, key=shape_of):
                samples = list(alike)
                with naming_damaged(samples):
                    batch = self._batch(samples, step, first_position=position)
                batches.append(replace(batch, joins=position > part.first_position))
                position += len(samples)
        return batches

    def ahead(self, steps: Sequence[int]) -> Iterator[tuple[int, list[Batch]]]:
        """Yield every step with its batches; the next one is read while this one is computed.

        Where there is a GPU they lie in pinned memory, from which copies need no waiting.
        """
        read = self._pinned if torch.cuda.is_available() else self.step
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as reader:
            waiting = reader.submit(read, steps[0]) if steps else None
            for index, step in enumerate(steps):
                assert waiting is not None
                batches = waiting.result()
                if index + 1 < len(steps):
                    waiting = reader.submit(read, steps[index + 1])
                yield step, batches

    def _pinned(self, step: int) -> list[Batch]:
        return [batch.changed(Tensor.pin_memory) for batch in self.step(step)]

    def _batch(self, samples: Sequence[Sample], step: int, *, first_position: int) -> Batch:
        places = range(first_position, first_position + len(samples))
        captions = [
            self._caption(sample, step, at) for sample, at in zip(samples, places, strict=True)
        ]
        target = read_latents(self.stores, [sample.target for sample in samples])
        tokens = target.shape[-1] * target.shape[-2] // PATCH_LATENTS**2
        embeds, lengths = read_embeds(self.stores, samples, captions)
        sigmas = [
            self.sigmas.draw(stream(self.seed, "sigma", step, at), target_tokens=tokens)
            for at in places
        ]
        sigma = torch.tensor(sigmas, dtype=torch.float32)
        noises = [
            stream(self.seed, "noise", step, at).standard_normal(target.shape[1:], np.float32)
            for at in places
        ]
        return Batch(
            first_position=first_position,
            names=tuple(sample.name for sample in samples),
            captions=tuple(captions),
            target=target,
            references=tuple(
                read_latents(self.stores, [sample.references[index] for sample in samples])
                for index in range(len(samples[0].references))
            ),
            embeds=embeds,
            text_lengths=lengths,
            noise=torch.from_numpy(np.stack(noises)),
            sigma=sigma,
            weights=read_weights(self.stores, samples),
            rollouts=self._rollouts(step, places, sigma.tolist()),
        )

    def _rollouts(
        self, step: int, places: Sequence[int], sigmas: Sequence[float]
    ) -> tuple[int, ...]:
        if self.rollouts is None:
            return ()
        steps = [
            self.rollouts.draw(stream(self.seed, "rollout", step, at), step=step, sigma=sigma)
            for at, sigma in zip(places, sigmas, strict=True)
        ]
        return tuple(steps) if any(steps) else ()

    def _caption(self, sample: Sample, step: int, position: int) -> str:
        """Draw one of the sample's captions, or the null caption where it is dropped."""
        random = stream(self.seed, "caption", step, position)
        alternative = int(random.integers(len(sample.captions)))
        dropped = random.random() < self.caption_dropout
        return NULL_CAPTION if dropped else sample.captions[alternative]


@dataclass(frozen=True)
class Slice(Generic[Item]):
    """Neighbours in a step that go through the model together.

    Attributes:
        first_position: the place of the first one among all samples of the step.
    """

    first_position: int
    items: tuple[Item, ...]


def share_of(batches: Sequence[Sequence[Item]], rank: int = 0, world: int = 1) -> list[Slice[Item]]:
    """Return what process `rank` of `world` takes of a step's batches.

    All samples of the step stand in one line, and each process takes the same number of
    neighbours, give or take one; a batch is cut only where a border falls into it. Together
    the shares are the step, each sample in one of them. A share may be empty, where a step
    has fewer samples than there are processes. Positions are those in the whole step, and so
    is what is drawn for them.

    >>> share_of(["abc", "d"], rank=1, world=2)
    [Slice(first_position=2, items=('c',)), Slice(first_position=3, items=('d',))]
    """
    total = sum(len(batch) for batch in batches)
    begin, end = total * rank // world, total * (rank + 1) // world
    slices = []
    first = 0
    for batch in batches:
        low, high = max(begin - first, 0), min(end - first, len(batch))
        if low < high:
            slices.append(Slice(first + low, tuple(batch[low:high])))
        first += len(batch)
    return slices


def forwards(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Return the batches in groups that go through the model together."""
    groups: list[list[Batch]] = []
    for batch in batches:
        if batch.joins and groups:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return groups


def padding_of(batches: Sequence[Batch]) -> float:
    """Return the share of the tokens that the model computes for `batches` which is padding."""
    real = every = 0
    for group in forwards(batches):
        longest = max(max(batch.text_lengths) for batch in group)
        largest = max(batch.image_tokens for batch in group)
        for batch in group:
            real += sum(batch.text_lengths) + len(batch) * batch.image_tokens
            every += len(batch) * (longest + largest)
    return 1 - real / every if every else 0.0
