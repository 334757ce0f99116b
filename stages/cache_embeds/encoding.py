"""Reference sets in, image prefixes and text tails out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...cache.errors import QeditError
from ...config.configuration import Configuration
from ..images import resized
from ..models.checkpoint import Checkpoint
from ..models.device import best_device, dtype_named
from ..models.prompt import PromptEncoder
from ..read_ahead import open_as_paired, read_ahead
from ..samples import Picture
from ..stores import picture_folders
from ..tensors import bits_of
from .stage import ReferenceSet

TOKENS_IN_PART = 16384
SETS_IN_PART = 64


@dataclass(slots=True)
class Part:
    """Rows by key that are written together: bfloat16 bits, each [token, channel]."""

    prefixes: dict[str, np.ndarray] = field(default_factory=dict)
    tails: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        tokens = sum(len(row) for row in (*self.prefixes.values(), *self.tails.values()))
        return tokens >= TOKENS_IN_PART or len(self.prefixes) >= SETS_IN_PART


class ReferenceEncoding:
    """The prompt encoder on its device, fed with pictures that are read a few ahead of it."""

    def __init__(
        self, configuration: Configuration, checkpoint: Checkpoint, *, device: str
    ) -> None:
        self._folders = picture_folders(configuration)
        self._encoder = PromptEncoder.load(
            checkpoint,
            dtype=dtype_named(configuration.settings.text_encoder_dtype),
            device=best_device(device),
        )

    def parts(
        self, sets: Mapping[str, ReferenceSet], advance: Callable[[int], None]
    ) -> Iterator[Part]:
        """Encode `sets` in the order of their keys, a part at a time.

        A set's prefix is run even where only a tail is missing: the tail needs its
        key-value cache, which is nine times as large as the row and not kept.
        """
        part = Part()
        keys = sorted(sets)
        for key, pictures in read_ahead(lambda key: self._pictures(sets[key]), keys):
            one = sets[key]
            prefix, tails = self._encoder.encode(pictures, list(one.tails.values()))
            part.prefixes[key] = self._checked(prefix, one)
            for name, tail in zip(one.tails, tails, strict=True):
                part.tails[name] = self._checked(tail, one)
            advance(1)
            if part.full:
                yield part
                part = Part()
        if part.prefixes:
            yield part

    def _pictures(self, one: ReferenceSet) -> list[Image.Image]:
        return [self._picture(reference) for reference in one.sample.references]

    def _picture(self, reference: Picture) -> Image.Image:
        opened = open_as_paired(self._folders[reference.dataset], reference)
        assert reference.vl_size is not None, "references always have one"
        return resized(opened, reference.box, reference.vl_size)

    def _checked(self, row: Tensor, one: ReferenceSet) -> np.ndarray:
        if not bool(torch.isfinite(row).all()):
            raise QeditError(
                f"The text encoder gives NaN or infinite embeds for sample {one.sample.name}.",
                "Look at its references and captions.",
            )
        return bits_of(row)
