"""Batches as tensors: rows read from the stores, with the noise, sigma and caption of each sample.

What is drawn for a sample depends on the seed, the step and the sample's position in the step,
so it is the same with any number of processes and after any resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...cache.errors import Damaged
from ..samples import NULL_CAPTION, Picture, Sample
from ..stores import RunStores
from ..tensors import tensor_of
from .batches import Order
from .draws import stream
from .flow import Sigmas
from .shares import share_of

PATCH_PIXELS = 2  # latent pixels along the edge of one token


@dataclass(frozen=True)
class Batch:
    """Samples of one shape, ready for one forward.

    Attributes:
        first_position: the place of the first sample in its step.
        names, captions: of the samples; a dropped caption is the null caption.
        mask: which text tokens are real; None where all captions are of one length.
        sigma: exact noise levels; the forward rounds them for the conditioning.
    """

    first_position: int
    names: tuple[str, ...]
    captions: tuple[str, ...]
    target: Float[Tensor, "batch channel height width"]
    references: tuple[Float[Tensor, "batch channel _ _"], ...]
    embeds: Float[Tensor, "batch token dim"]
    mask: Bool[Tensor, "batch token"] | None
    noise: Float[Tensor, "batch channel height width"]
    sigma: Float[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Feed:
    """Reads what the model is shown: everything in it is a function of (seed, step).

    Attributes:
        rank, world: this process and how many share each step; see `share_of`.
    """

    order: Order
    stores: RunStores
    sigmas: Sigmas
    seed: int
    caption_dropout: float = 0.0
    rank: int = 0
    world: int = 1

    def samples_in(self, step: int) -> int:
        """How many samples `step` has over all processes."""
        return sum(len(batch) for batch in self.order.step(step))

    def step(self, step: int) -> list[Batch]:
        """This process's batches of `step`, on the CPU; a share may have none.

        Latents and embeds are as stored, noise is in float32.

        Raises:
            Damaged: a row's bytes are not those that were written.
        """
        batches: list[Batch] = []
        for part in share_of(self.order.step(step), self.rank, self.world):
            with naming(part.items):
                batches.append(self._batch(part.items, step, first_position=part.first_position))
        return batches

    def ahead(self, steps: Sequence[int]) -> Iterator[tuple[int, list[Batch]]]:
        """Every step with its batches; the next one is read while this one is computed."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as reader:
            waiting = reader.submit(self.step, steps[0]) if steps else None
            for index, step in enumerate(steps):
                assert waiting is not None
                batches = waiting.result()
                if index + 1 < len(steps):
                    waiting = reader.submit(self.step, steps[index + 1])
                yield step, batches

    def _batch(self, samples: Sequence[Sample], step: int, *, first_position: int) -> Batch:
        places = range(first_position, first_position + len(samples))
        captions = [
            self._caption(sample, step, at) for sample, at in zip(samples, places, strict=True)
        ]
        target = self._latents([sample.target for sample in samples])
        tokens = target.shape[-1] * target.shape[-2] // PATCH_PIXELS**2
        rows = [
            self._embeds(sample, caption) for sample, caption in zip(samples, captions, strict=True)
        ]
        embeds, mask = padded(rows)
        sigmas = [
            self.sigmas.draw(stream(self.seed, "sigma", step, at), target_tokens=tokens)
            for at in places
        ]
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
                self._latents([sample.references[index] for sample in samples])
                for index in range(len(samples[0].references))
            ),
            embeds=embeds,
            mask=mask,
            noise=torch.from_numpy(np.stack(noises)),
            sigma=torch.tensor(sigmas, dtype=torch.float32),
        )

    def _caption(self, sample: Sample, step: int, position: int) -> str:
        """One of the sample's captions, or the null caption where it is dropped."""
        random = stream(self.seed, "caption", step, position)
        alternative = int(random.integers(len(sample.captions)))
        dropped = random.random() < self.caption_dropout
        return NULL_CAPTION if dropped else sample.captions[alternative]

    def _latents(self, pictures: Sequence[Picture]) -> Float[Tensor, "batch channel height width"]:
        read = self.stores.latents.read
        rows = [read(picture.latent_key, dataset=picture.dataset) for picture in pictures]
        return tensor_of(np.stack(rows))

    def _embeds(self, sample: Sample, caption: str) -> Float[Tensor, "token dim"]:
        """The image prefix and the caption's tail, as the encoder would give them in one."""
        prefix = self.stores.prefixes.read(sample.prefix_key, dataset=sample.dataset)
        tail = self.stores.tails.read(sample.tail_key(caption), dataset=sample.dataset)
        return tensor_of(np.concatenate([prefix, tail]))


@contextmanager
def naming(samples: Sequence[Sample]) -> Iterator[None]:
    """Say of damaged rows whose they are."""
    try:
        yield
    except Damaged as error:
        names = " or ".join(sample.name for sample in samples)
        raise Damaged(f"A row of sample {names} is damaged.\n{error.what}", error.do) from error


def padded(
    rows: Sequence[Float[Tensor, "_ dim"]],
) -> tuple[Float[Tensor, "batch token dim"], Bool[Tensor, "batch token"] | None]:
    """Stack texts of different lengths, zeros to the right, with a mask of what is real.

    Texts of one length get no mask: attention without one is faster and bit-equal.
    """
    lengths = torch.tensor([len(row) for row in rows])
    embeds = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    if bool((lengths == lengths[0]).all()):
        return embeds, None
    return embeds, torch.arange(embeds.shape[1])[None] < lengths[:, None]
