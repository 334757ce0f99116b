"""The rows of samples as tensors: the one reader for training, previews and `inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...cache.errors import Damaged
from ...config.latent_geometry import latent_size
from ..samples.sample import Picture, Sample
from .bfloat16 import bits_in, tensor_of
from .run_stores import RunStores


def read_latents(
    stores: RunStores, pictures: Sequence[Picture]
) -> Float[Tensor, "batch channel height width"]:
    """Return the latents of pictures of one size as they are stored: normalised, in bfloat16."""
    store_set, first = stores.latents, pictures[0]
    shape = store_set.shape(first.latent_key, dataset=first.dataset)
    batch = torch.empty(len(pictures), *shape, dtype=torch.bfloat16)
    for picture, space in zip(pictures, bits_in(batch), strict=True):
        store_set.read(picture.latent_key, dataset=picture.dataset, into=space)
    return batch


def read_embeds(
    stores: RunStores, samples: Sequence[Sample], captions: Sequence[str]
) -> tuple[Float[Tensor, "batch token dim"], tuple[int, ...]]:
    """Return image prefixes joined with text tails, as the encoder gives them in one.

    Args:
        captions: one for each sample.

    Returns:
        The embeds in bfloat16, shorter ones with zeros to the right, and their lengths in tokens.
    """
    prefixes, tails = stores.prefixes, stores.tails
    texts = [
        (
            (prefixes, sample.prefix_key, sample.dataset),
            (tails, sample.tail_key(text), sample.dataset),
        )
        for sample, text in zip(samples, captions, strict=True)
    ]
    shapes = [
        [store_set.shape(key, dataset=where) for store_set, key, where in text] for text in texts
    ]
    lengths = tuple(prefix[0] + tail[0] for prefix, tail in shapes)
    batch = torch.empty(len(texts), max(lengths), shapes[0][0][1], dtype=torch.bfloat16)
    for row, text, shape in zip(batch, texts, shapes, strict=True):
        begin = 0
        for (store_set, key, where), (length, _) in zip(text, shape, strict=True):
            store_set.read(key, dataset=where, into=bits_in(row[begin : begin + length]))
            begin += length
        row[begin:] = 0
    return batch, lengths


def read_weights(
    stores: RunStores, samples: Sequence[Sample]
) -> Float[Tensor, "batch 1 height width"] | None:
    """Return the loss weights of samples of one shape in float32; None if none has a mask.

    A sample without a mask counts everywhere alike.
    """
    if all(sample.mask is None for sample in samples):
        return None
    width, height = latent_size(samples[0].target.size)
    return torch.stack(
        [
            torch.ones(1, height, width)
            if sample.mask is None
            else _mask_weights(stores, sample.mask)
            for sample in samples
        ]
    )


def _mask_weights(stores: RunStores, mask: Picture) -> Float[Tensor, "1 height width"]:
    row = stores.weights.read(mask.weight_key, dataset=mask.dataset)
    return (tensor_of(row) if row.dtype == np.uint16 else torch.from_numpy(row)).float()


@contextmanager
def naming_damaged(samples: Sequence[Sample]) -> Iterator[None]:
    """Name the samples in the error where a row of theirs, read in the block, is damaged."""
    try:
        yield
    except Damaged as error:
        names = " or ".join(sample.name for sample in samples)
        raise Damaged(f"A row of sample {names} is damaged.\n{error.what}", error.do) from error
