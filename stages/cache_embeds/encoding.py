"""Reference sets in, image prefixes and text tails out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...cache.store.rejected_rows import RejectedRow
from ..encoding.encoder import EncodedItem, Encoder, Unfit
from ..encoding.open_pictures import RecentPictures, open_to_encode
from ..encoding.reference_sets import TOKENS_AROUND, ReferenceSet
from ..encoding.spool import Spool, spool_key
from ..models.device import best_device, dtype_named
from ..models.text.prompt import PromptEncoder
from ..models.text.prompt_reader import Prompt, PromptReader
from ..pictures.images import resized
from ..samples.sample import Picture
from ..samples.table import picture_folders
from ..stores.bfloat16 import bits_of
from ..stores.recipes import PILLOW
from ..stores.row_kinds import RowKind
from ..stores.run import Run

STAGE = "cache-embeds"
MOST_SETS = 32
TOKENS_WHERE_NOTHING_IS_KNOWN = 2048
# A batch is padded to its longest prefix: not to more than so many times the shortest.
MOST_PADDING = 1.25


class ReferenceEncoding:
    """Reads, compares and names reference sets, as the recipe of the run's prefixes says."""

    def __init__(
        self,
        run: Run,
        *,
        device: str,
        spool: Spool | None = None,
    ) -> None:
        self._settings, self._checkpoint = run.settings, run.checkpoint
        self._folders = picture_folders(run.configuration)
        self._device, self._spool = device, spool
        with_pillow = run.stores.prefixes.recipe["processor"]["backend"] == PILLOW
        self._reader = PromptReader.load(run.checkpoint, with_pillow=with_pillow)
        self._recent = RecentPictures()

    def read(self, item: ReferenceSet) -> Prompt:
        """Decode the references that are not at hand yet, and cut all into tokens."""
        pictures = [self._picture(reference) for reference in item.sample.references]
        return self._reader.read(pictures, list(item.tails.values()))

    def cost(self, item: ReferenceSet) -> int:
        """Return about how many tokens the set has."""
        return item.picture_tokens + item.tail_tokens + TOKENS_AROUND

    def together(self, first: ReferenceSet, other: ReferenceSet) -> bool:
        """Return whether padding stays small: sets of a part come in the order of their length."""
        return self.cost(other) <= MOST_PADDING * self.cost(first)

    def rejected(self, item: ReferenceSet, unfit: Unfit) -> EncodedItem:
        """Reject the prefix, and the tail of each of these captions."""
        sample = item.sample
        return EncodedItem(
            rejected={
                RowKind.PREFIXES: [_rejected(item, sample.prefix_key, unfit)],
                RowKind.TAILS: [_rejected(item, key, unfit) for key in item.tails],
            }
        )

    def name(self, item: ReferenceSet) -> str:
        """Return the name of the sample."""
        return f"Sample {item.sample.name}"

    def open(self) -> Encoder:
        """Load the text encoder."""
        encoder = PromptEncoder.load(
            self._checkpoint,
            dtype=dtype_named(self._settings.text_encoder_dtype),
            device=best_device(self._device),
            precision=self._settings.text_encoder_precision,
            reader=self._reader,
        )
        return OnDevice(encoder)

    def _picture(self, reference: Picture) -> Image.Image:
        return self._recent.get(spool_key(reference), partial(self._fresh, reference))

    def _fresh(self, reference: Picture) -> Image.Image:
        spooled = self._spool.take(reference) if self._spool else None
        if spooled is not None:
            return spooled
        opened = open_to_encode(self._folders[reference.dataset], reference)
        assert reference.vl_size is not None, "references always have one"
        return resized(opened, reference.box, reference.vl_size)


class OnDevice:
    """The prompt encoder on its device."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    @property
    def device(self) -> torch.device:
        return torch.device(self._encoder.model.device)

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[EncodedItem]:
        """Return the rows of each set; those that are NaN or infinite are rejected, no others."""
        encoded = self._encoder.encode_all(read)
        return [_made(item, *rows) for item, rows in zip(items, encoded, strict=True)]


def _made(item: ReferenceSet, prefix: Tensor, tails: Sequence[Tensor]) -> EncodedItem:
    made = EncodedItem(
        rows={RowKind.PREFIXES: {}, RowKind.TAILS: {}},
        rejected={RowKind.PREFIXES: [], RowKind.TAILS: []},
    )
    named = [(RowKind.PREFIXES, item.sample.prefix_key, prefix)]
    named += [(RowKind.TAILS, key, tail) for key, tail in zip(item.tails, tails, strict=True)]
    for kind, key, row in named:
        if bool(torch.isfinite(row).all()):
            made.rows[kind][key] = bits_of(row)
        else:
            text = item.tails.get(key)
            of = "its references" if text is None else f"the caption {text!r}"
            unfit = Unfit("nan_embeds", f"the text encoder gives NaN or infinite values for {of}")
            made.rejected[kind].append(_rejected(item, key, unfit))
    return made


def _rejected(item: ReferenceSet, key: str, unfit: Unfit) -> RejectedRow:
    sample = item.sample
    return RejectedRow(key, STAGE, sample.dataset, sample.name, unfit.reason, unfit.detail)
