"""Estimate the bytes that caches take on disk, from the sizes of samples alone. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from ...cache.format.grid import chunk_length
from ...config.latent_geometry import LATENT_CHANNELS, LATENT_PIXELS
from ..models.flavours import Flavour
from ..samples.sample import Sample

NUMBER_BYTES = 2  # bfloat16, in which rows are stored
# Of a picture's place in the prompt, beside the picture's own tokens: <|vision_start|> and
# <|vision_end|>, and "Picture 1: " where pictures are numbered.
_SLOT_TOKENS, _NUMBER_TOKENS = 2, 5
_CLOSING_TOKENS = 5  # what follows the caption
_TEXT_BYTES_A_TOKEN = 4  # of UTF-8, about: a word is a token or two
_PAIRS_ROW_BYTES = 200  # of the compressed pairs table, about


@dataclass(frozen=True)
class Encoders:
    """The numbers of the encoders that decide the size of cached rows.

    Attributes:
        text_width: of the language model's states.
        patch: edge in pixels that one token of a picture stands for.
        channels, factor: of the VAE's latents, and pixels of an edge that make one of them.
    """

    text_width: int = 3584
    patch: int = 28
    channels: int = LATENT_CHANNELS
    factor: int = LATENT_PIXELS


class Rows(NamedTuple):
    """Rows of one kind, and the bytes they take."""

    how_many: int
    count_bytes: int


def latent_rows(samples: Iterable[Sample], encoders: Encoders, datasets: Collection[str]) -> Rows:
    """Return the rows of the distinct pictures of `datasets`, as latents."""
    latents = {
        picture.latent_key: prod(edge // encoders.factor for edge in picture.size)
        for sample in samples
        for picture in (sample.target, *sample.references)
        if picture.dataset in datasets
    }
    return Rows(len(latents), sum(latents.values()) * encoders.channels * NUMBER_BYTES)


def mask_rows(samples: Iterable[Sample], encoders: Encoders, datasets: Collection[str]) -> Rows:
    """Return the rows of the distinct masks of `datasets`, as weights of latent pixels."""
    weights = {
        sample.mask.weight_key: prod(edge // encoders.factor for edge in sample.mask.size)
        for sample in samples
        if sample.mask and sample.mask.dataset in datasets
    }
    return Rows(len(weights), sum(weights.values()) * NUMBER_BYTES)


def prefix_rows(samples: Iterable[Sample], flavour: Flavour, encoders: Encoders) -> Rows:
    """Return the rows of the distinct reference sets, as image prefixes."""
    lengths = {
        sample.prefix_key: prefix_tokens(sample, flavour, encoders=encoders) for sample in samples
    }
    return _embeds(list(lengths.values()), encoders)


def tail_rows(samples: Iterable[Sample], beside: Sequence[str], encoders: Encoders) -> Rows:
    """Return the captions as text tails, and those of `beside` once for every reference set."""
    lengths = {
        (sample.prefix_key, caption): tail_tokens(caption)
        for sample in samples
        for caption in (*sample.captions, *beside)
    }
    return _embeds(list(lengths.values()), encoders)


def pair_rows(samples: Sequence[Sample]) -> Rows:
    """Return the rows of the pairs table; their bytes are a rough guess."""
    text = sum(len(caption.encode()) for sample in samples for caption in sample.captions)
    return Rows(len(samples), _PAIRS_ROW_BYTES * len(samples) + text // 2)


def prefix_tokens(sample: Sample, flavour: Flavour, *, encoders: Encoders) -> int:
    """Return the tokens of the image prefix: those of each reference, and of its slot."""
    slot = _SLOT_TOKENS + (_NUMBER_TOKENS if flavour.numbered_pictures else 0)
    seen = (picture.vl_size for picture in sample.references)
    return sum(picture_tokens(size, encoders.patch) + slot for size in seen if size)


def tail_tokens(caption: str) -> int:
    """Return roughly the tokens of a text tail: only the tokenizer knows."""
    return -(-len(caption.encode()) // _TEXT_BYTES_A_TOKEN) + _CLOSING_TOKENS


def text_tokens(sample: Sample, flavour: Flavour, *, encoders: Encoders) -> int:
    """Return the tokens of the prompt with the longest caption of the sample."""
    longest = max((tail_tokens(caption) for caption in sample.captions), default=_CLOSING_TOKENS)
    return prefix_tokens(sample, flavour, encoders=encoders) + longest


def picture_tokens(size: tuple[int, int], patch: int) -> int:
    """Return the tokens of a picture of (width, height) pixels, edges rounded to `patch`.

    >>> picture_tokens((1024, 1024), 28), picture_tokens((512, 288), 28)
    (1369, 180)
    """
    across, down = (max(1, round(edge / patch)) for edge in size)
    return across * down


def _embeds(lengths: Sequence[int], encoders: Encoders) -> Rows:
    """Return ragged rows: each begins on a chunk, so the last chunk of a row is padded."""
    if not lengths:
        return Rows(0, 0)
    chunk = chunk_length(lengths)
    stored = sum(-(-length // chunk) * chunk for length in lengths)
    return Rows(len(lengths), stored * encoders.text_width * NUMBER_BYTES)
