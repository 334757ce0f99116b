"""The kinds of rows that are cached: their names in recipes, layouts, words, places and keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from ...cache.format.part import Layout
from ...cache.store.store import EMBEDS, LATENTS
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..samples.sample import Sample
from ..samples.store_keys import Keys, PairsKeys

WEIGHTS = Layout("weights", ("sample", "channel", "height", "width"), ragged=False)
MODULATION = Layout("modulation", ("timestep", "layer", "channel"), ragged=False)
PICTURES = Layout("pictures", ("token", "channel"), ragged=True)


class RowKind(Enum):
    """A kind of rows; its value stands in recipes under "rows" and never changes."""

    LATENTS = "latents"
    WEIGHTS = "weights"
    PREFIXES = "image prefix"
    TAILS = "text tail"
    MODULATION = "modulation"
    QUANTIZED = "quantised base"
    PICTURES = "pictures"  # of a spool: they go when the command ends

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> RowKind:
        """Return the kind of rows that `recipe` makes; raises ValueError for any other."""
        return cls(recipe.get("rows"))

    @property
    def words(self) -> str:
        """The rows in words, as tables and run.json name them."""
        return _WORDS.get(self, self.value)

    @property
    def layout(self) -> Layout:
        """The layout of the rows in a store; the quantised base is no store."""
        return _LAYOUTS.get(self, EMBEDS)

    def folder(self, configuration: Configuration, dataset: Dataset) -> Path:
        """Return where the stores of this kind lie that hold the rows of `dataset`."""
        if self is RowKind.PREFIXES:
            return configuration.image_embeds_folder(dataset)
        if self is RowKind.TAILS:
            return configuration.text_embeds_folder(dataset)
        return configuration.vae_folder(dataset)

    def keys_in(self, table: PairsKeys, captions: Sequence[str]) -> Keys:
        """Return the keys of the rows that a pairs table wants.

        Args:
            captions: those that every reference set gets besides its own.
        """
        if self is RowKind.TAILS:
            return table.tails(captions)
        if self is RowKind.PREFIXES:
            return table.prefixes
        return table.weights() if self is RowKind.WEIGHTS else table.latents()

    def keys_of(self, sample: Sample, captions: Iterable[str] = ()) -> list[str]:
        """Return the keys of the rows that training reads of `sample`.

        Args:
            captions: those that every reference set gets besides its own.
        """
        if self is RowKind.TAILS:
            return [sample.tail_key(text) for text in dict.fromkeys((*sample.captions, *captions))]
        if self is RowKind.PREFIXES:
            return [sample.prefix_key]
        if self is RowKind.WEIGHTS:
            return [sample.mask.weight_key] if sample.mask else []
        return [picture.latent_key for picture in (sample.target, *sample.references)]


SAMPLE_ROWS = (RowKind.LATENTS, RowKind.PREFIXES, RowKind.TAILS, RowKind.WEIGHTS)
_WORDS = {
    RowKind.WEIGHTS: "mask weights",
    RowKind.PREFIXES: "image prefixes",
    RowKind.TAILS: "text tails",
}
_LAYOUTS = {
    RowKind.LATENTS: LATENTS,
    RowKind.WEIGHTS: WEIGHTS,
    RowKind.MODULATION: MODULATION,
    RowKind.PICTURES: PICTURES,
}


def layout_of(recipe: Mapping[str, Any]) -> Layout:
    """Return how the rows of `recipe` lie in a store: those of unknown kinds as embeds do."""
    try:
        return RowKind.of(recipe).layout
    except ValueError:
        return EMBEDS


def row_keys(sample: Sample, captions: Iterable[str]) -> Iterator[str]:
    """Yield the keys of every row that training reads of `sample`; `captions` as in `keys_of`."""
    for kind in SAMPLE_ROWS:
        yield from kind.keys_of(sample, captions)
