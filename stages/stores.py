"""The stores of a run: which rows it wants, where they lie, and what is missing.

A picture's latents lie in the store of its own dataset, a reference set's image prefix and
the text tails in the stores of the main dataset. Each kind is a shelf of stores (`shelf.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import NotComplete
from ..cache.part import Layout
from ..cache.store import COMPRESSION, EMBEDS, LATENTS, Store
from ..config.configuration import Configuration
from ..config.datasets import Dataset
from ..config.settings import Settings
from .beside import made_for_others
from .missing import Missing
from .models.checkpoint import Checkpoint
from .models.flavours import Flavour
from .models.recipes import latent_recipe, mask_recipe, prompt_recipe
from .models.templates import prefix_text
from .pairs_table import read_pairs
from .rejected_rows import RejectedRow, RejectedRows
from .samples import NULL_CAPTION, Sample
from .shelf import Shelf

REMEMBERED_DIGESTS = "model-digests.json"
WEIGHTS = Layout("weights", ("sample", "channel", "height", "width"), ragged=False)


@dataclass(frozen=True)
class RunStores:
    """Every row a run reads: latents of pictures, weights of masks, image prefixes, text tails."""

    latents: Shelf
    prefixes: Shelf
    tails: Shelf
    weights: Shelf
    flavour: Flavour

    def shelves(self) -> tuple[Shelf, ...]:
        """All of them."""
        return (self.latents, self.prefixes, self.tails, self.weights)

    def without_rejected(
        self, samples: Sequence[Sample], captions_too: Iterable[str]
    ) -> Sequence[Sample]:
        """Those of `samples` of which no row was rejected.

        Raises:
            NotComplete: rows were rejected and nobody has accepted that.
        """
        rejected: dict[str, RejectedRows] = {}
        for shelf in self.shelves():
            rejected |= shelf.rejected()
        if not rejected:
            return samples
        kept: list[Sample] = []
        extra = tuple(captions_too)
        for sample in samples:
            keys = (key for key in _keys_of(sample, extra) if key in rejected)
            # what has just been forgotten is tried again: it is missing until then
            rows = [row for key in keys if (row := rejected[key].read(key)) is not None]
            for row in rows:
                _refuse_unaccepted(sample, row)
            if not rows:
                kept.append(sample)
        return kept

    def missing(self, samples: Iterable[Sample], captions_too: Iterable[str]) -> Missing:
        """Which of `samples` cannot be trained on yet; `captions_too` are wanted of each."""
        extra = tuple(captions_too)
        no_latents: list[str] = []
        no_embeds: list[str] = []
        for sample in samples:
            pictures = (sample.target, *sample.references)
            if any(picture.latent_key not in self.latents for picture in pictures) or (
                sample.mask and sample.mask.weight_key not in self.weights
            ):
                no_latents.append(sample.name)
            tails = (sample.tail_key(caption) for caption in (*sample.captions, *extra))
            if sample.prefix_key not in self.prefixes or any(
                key not in self.tails for key in tails
            ):
                no_embeds.append(sample.name)
        return Missing(
            tuple(no_latents),
            tuple(no_embeds),
            flavour=self.flavour.name,
            embeds_beside=self._made_for_others() if no_embeds else "",
        )

    def _made_for_others(self) -> str:
        def fits(flavour: Flavour, recipe: Mapping[str, Any]) -> bool:
            numbered = flavour.numbered_pictures
            return bool(recipe.get("prefix") == prefix_text(1, numbered=numbered))

        beside = (
            made_for_others(store.path, self.flavour, fits=fits) for store in self.prefixes.stores()
        )
        return next(filter(None, beside), "")


def _keys_of(sample: Sample, extra: Iterable[str]) -> Iterator[str]:
    """Of every row that `sample` needs, with these captions besides its own."""
    for picture in (sample.target, *sample.references):
        yield picture.latent_key
    if sample.mask:
        yield sample.mask.weight_key
    yield sample.prefix_key
    for caption in (*sample.captions, *extra):
        yield sample.tail_key(caption)


def _refuse_unaccepted(sample: Sample, row: RejectedRow) -> None:
    if not row.accepted:
        raise NotComplete(
            f"`qedit {row.stage}` rejected sample {sample.name}, and nobody has accepted that "
            f"yet. {row}.",
            f"Mend it and run `qedit {row.stage} --retry-rejected`, or go on without it: "
            f"`qedit {row.stage} --on-reject skip`.",
        )


def open_stores(configuration: Configuration, checkpoint: Checkpoint) -> RunStores:
    """Open every store of the run for reading; nothing is made on disk."""
    settings = configuration.settings
    remember = digests_file(settings)
    mains = used_main_datasets(configuration)
    pictures = {
        dataset.id: configuration.vae_folder(dataset)
        for main in mains
        for dataset in (main, *configuration.references_of(main))
    }
    latents = latent_recipe(checkpoint, settings, remember=remember) | how_stored(settings)
    embeds = prompt_recipe(checkpoint, settings, remember=remember) | how_stored(settings)
    masks = {mask.id: mask for main in mains if (mask := configuration.mask_of(main))}
    prefixes = {main.id: configuration.image_embeds_folder(main) for main in mains}
    tails = {main.id: configuration.text_embeds_folder(main) for main in mains}
    return RunStores(
        latents=Shelf(pictures, latents, LATENTS),
        prefixes=Shelf(prefixes, embeds | {"rows": "image prefix"}, EMBEDS),
        tails=Shelf(tails, embeds | {"rows": "text tail"}, EMBEDS),
        weights=Shelf(
            {name: configuration.vae_folder(mask) for name, mask in masks.items()},
            mask_recipe(),
            WEIGHTS,
        ),
        flavour=checkpoint.flavour,
    )


def how_stored(settings: Settings) -> dict[str, str]:
    """What a recipe says of `cache_compression`: nothing of none, so that old stores stay found."""
    zipped = settings.cache_compression
    return {} if zipped == "none" else {COMPRESSION: zipped}


def add_missing(store: Store, rows: Mapping[str, np.ndarray]) -> int:
    """Add those of `rows` that `store` does not hold, as one part; how many there were."""
    keys = store.missing(rows)
    if keys:
        store.add(keys, [rows[key] for key in keys])
    return len(keys)


def picture_folders(configuration: Configuration) -> dict[str, Path]:
    """Dataset id -> the folder its pictures lie in."""
    return {
        dataset.id: Path(dataset.instance_data_dir)
        for dataset in configuration.datasets
        if dataset.instance_data_dir is not None
    }


def digests_file(settings: Settings) -> Path:
    """Where digests of large model files are remembered between runs."""
    return Path(settings.cache_dir) / REMEMBERED_DIGESTS


def used_main_datasets(configuration: Configuration) -> tuple[Dataset, ...]:
    """The datasets whose samples are cached: those trained on and those only evaluated."""
    return (*configuration.main_datasets(), *configuration.eval_datasets())


def accepted_samples(
    configuration: Configuration,
    main: Dataset,
    checkpoint: Checkpoint,
    *,
    stores: RunStores | None = None,
) -> Sequence[Sample]:
    """The samples of `main` without those of which a row was rejected, as the user accepted.

    Raises:
        NotComplete: there are no pairs, or nobody has accepted to go on without some rows.
    """
    samples = read_pairs(configuration, main, checkpoint.flavour).samples
    stores = stores or open_stores(configuration, checkpoint)
    return stores.without_rejected(samples, captions_beside(configuration.settings))


def samples_of(configuration: Configuration, checkpoint: Checkpoint) -> Iterator[Sample]:
    """Every sample that is cached, dataset by dataset, as `pair` left them."""
    for main in used_main_datasets(configuration):
        yield from read_pairs(configuration, main, checkpoint.flavour).samples


def captions_beside(settings: Settings) -> tuple[str, ...]:
    """Captions that every reference set gets besides its own: the null and negative prompt."""
    return tuple(dict.fromkeys((NULL_CAPTION, settings.validation_negative_prompt)))
