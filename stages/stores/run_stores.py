"""The stores of a run: which rows it wants, where they lie, and what is missing.

A picture's latents lie in the store of its own dataset, a reference set's image prefix and
the text tails in the stores of the main dataset. Each kind is a set of stores
(`cache/store/store_set.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...cache.errors import Damaged, NotComplete
from ...cache.store.rejected_rows import RejectedRow, RejectedRows
from ...cache.store.store import COMPRESSION, Store
from ...cache.store.store_set import StoreSet
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...config.settings import Settings
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.checkpoint.digests import digests_file
from ..models.flavours import Flavour
from ..models.templates import prefix_text
from ..run_output.run_file import read_run
from ..samples.other_flavours import made_for_others
from ..samples.sample import Sample
from ..samples.table import used_main_datasets
from .recipes import as_begun, latent_recipe, mask_recipe, prompt_recipe
from .row_kinds import SAMPLE_ROWS, RowKind, row_keys


@dataclass(frozen=True)
class RunStores:
    """The stores of every row that a run reads, by kind."""

    latents: StoreSet
    prefixes: StoreSet
    tails: StoreSet
    weights: StoreSet
    flavour: Flavour

    def of(self, kind: RowKind) -> StoreSet:
        """Return the stores of one kind of a sample's rows."""
        return dict(zip(SAMPLE_ROWS, self.store_sets(), strict=True))[kind]

    def store_sets(self) -> tuple[StoreSet, ...]:
        """Return the stores of all kinds, in the order of `SAMPLE_ROWS`."""
        return (self.latents, self.prefixes, self.tails, self.weights)

    def all_stores(self) -> list[Store]:
        """Return every store of the four sets."""
        return [store for store_set in self.store_sets() for store in store_set.stores()]

    def without_rejected(
        self, samples: Sequence[Sample], captions_too: Iterable[str]
    ) -> Sequence[Sample]:
        """Return those of `samples` of which no row was rejected.

        Raises:
            NotComplete: rows were rejected, and not accepted.
        """
        rejected: dict[str, RejectedRows] = {}
        for store_set in self.store_sets():
            rejected |= store_set.rejected()
        if not rejected:
            return samples
        kept: list[Sample] = []
        extra = tuple(captions_too)
        for sample in samples:
            keys = (key for key in row_keys(sample, extra) if key in rejected)
            # what has just been forgotten is tried again: it is missing until then
            rows = [row for key in keys if (row := rejected[key].read(key)) is not None]
            for row in rows:
                _refuse_unaccepted(sample, row)
            if not rows:
                kept.append(sample)
        return kept

    def missing(self, samples: Iterable[Sample], captions_too: Iterable[str]) -> Missing:
        """Return which of `samples` cannot be trained on yet; `captions_too` are wanted of each."""
        extra = tuple(captions_too)
        no_latents: list[str] = []
        no_embeds: list[str] = []
        for sample in samples:
            if self._lacks(sample, (), RowKind.LATENTS, RowKind.WEIGHTS):
                no_latents.append(sample.name)
            if self._lacks(sample, extra, RowKind.PREFIXES, RowKind.TAILS):
                no_embeds.append(sample.name)
        return Missing(
            tuple(no_latents),
            tuple(no_embeds),
            flavour=self.flavour.name,
            embeds_beside=self._made_for_others() if no_embeds else "",
        )

    def _lacks(self, sample: Sample, captions: Sequence[str], *kinds: RowKind) -> bool:
        return any(
            key not in self.of(kind) for kind in kinds for key in kind.keys_of(sample, captions)
        )

    def _made_for_others(self) -> str:
        def fits(flavour: Flavour, recipe: Mapping[str, Any]) -> bool:
            numbered = flavour.numbered_pictures
            return bool(recipe.get("prefix") == prefix_text(1, numbered=numbered))

        beside = (
            made_for_others(store.path, self.flavour, fits=fits) for store in self.prefixes.stores()
        )
        return next(filter(None, beside), "")


@dataclass(frozen=True, slots=True)
class Missing:
    """Names of samples whose latents or embeds are not cached yet."""

    latents: tuple[str, ...]
    embeds: tuple[str, ...]
    flavour: str
    embeds_beside: str = ""

    def refuse(self, total: int, *, then: str) -> None:
        """Raise NotComplete, naming the first sample and the command to type, if any is missing."""
        for names, what, command, beside in (
            (self.latents, "latents", "qedit cache-vae", ""),
            (self.embeds, "embeds", "qedit cache-embeds", self.embeds_beside),
        ):
            if names:
                have = "has" if len(names) == 1 else "have"
                raise NotComplete(
                    f"{len(names)} of {total} samples {have} no {what} for {self.flavour} yet, "
                    f"the first is {names[0]}{beside}.",
                    f"Run `{command}`, then `{then}` again.",
                )


def _refuse_unaccepted(sample: Sample, row: RejectedRow) -> None:
    if not row.accepted:
        raise NotComplete(
            f"`qedit {row.stage}` rejected sample {sample.name}: {row}.",
            f"Fix it and run `qedit {row.stage} --retry-rejected`, or go on without it: "
            f"`qedit {row.stage} --on-reject skip`.",
        )


def open_stores(configuration: Configuration, checkpoint: Checkpoint) -> RunStores:
    """Open every store of the run for reading; nothing is made on disk."""
    settings = configuration.settings
    remember = digests_file(settings)
    mains = used_main_datasets(configuration)
    pictures = [dataset for main in mains for dataset in (main, *configuration.references_of(main))]
    masks = [mask for main in mains if (mask := configuration.mask_of(main))]
    latents = latent_recipe(checkpoint, settings, remember=remember) | how_stored(settings)
    embeds = prompt_recipe(checkpoint, settings, remember=remember) | how_stored(settings)
    begun = _recipes_begun_with(settings)

    def stores_of(
        kind: RowKind, datasets: Iterable[Dataset], recipe: Mapping[str, Any]
    ) -> StoreSet:
        folders = {dataset.id: kind.folder(configuration, dataset) for dataset in datasets}
        own = as_begun({**recipe, "rows": kind.value}, begun.get(kind.words))
        return StoreSet(folders, own, kind.layout)

    return RunStores(
        latents=stores_of(RowKind.LATENTS, pictures, latents),
        prefixes=stores_of(RowKind.PREFIXES, mains, embeds),
        tails=stores_of(RowKind.TAILS, mains, embeds),
        weights=stores_of(RowKind.WEIGHTS, masks, mask_recipe()),
        flavour=checkpoint.flavour,
    )


def _recipes_begun_with(settings: Settings) -> Mapping[str, str]:
    """Return the fingerprints of recipes in the run.json of `output_dir`, by kind of row."""
    try:
        run = read_run(settings.output_dir)
    except Damaged:
        return {}  # `train` refuses the folder, and says why
    recipes: Mapping[str, str] = (run or {}).get("recipes", {})
    return recipes


def how_stored(settings: Settings) -> dict[str, str]:
    """Return what recipes say of `cache_compression`: nothing of none, as in old stores."""
    zipped = settings.cache_compression
    return {} if zipped == "none" else {COMPRESSION: zipped}


def add_missing(store: Store, rows: Mapping[str, np.ndarray]) -> int:
    """Add those of `rows` that `store` does not hold, as one part; how many there were."""
    keys = store.missing(rows)
    if keys:
        store.add(keys, [rows[key] for key in keys])
    return len(keys)
