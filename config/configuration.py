"""Joins both files: the settings, the enabled datasets, and the folders of everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .datasets import Dataset
from .settings import Settings


@dataclass(frozen=True)
class Configuration:
    """A checked configuration.

    Attributes:
        settings: of config.json.
        datasets: the enabled ones, in the order of the file.
        notes: one line each on what was accepted without an effect, and on silent defaults.
        origins: dataset id (None: config.json) and key, with dots -> the file or `--set` that gave
            it; a key with its default is not in here.
    """

    settings: Settings
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...] = ()
    origins: Mapping[tuple[str | None, str], str] = field(default_factory=dict, compare=False)

    def main_datasets(self) -> tuple[Dataset, ...]:
        """Return the datasets whose pictures are targets to train on."""
        return tuple(
            dataset
            for dataset in self.datasets
            if dataset.dataset_type == "image" and dataset.id != self.settings.eval_dataset_id
        )

    def eval_datasets(self) -> tuple[Dataset, ...]:
        """Return the datasets of held-out pairs, which are never trained on."""
        return tuple(
            dataset
            for dataset in self.datasets
            if dataset.dataset_type == "eval" or dataset.id == self.settings.eval_dataset_id
        )

    def references_of(self, main: Dataset) -> tuple[Dataset, ...]:
        """Return the reference datasets of `main`, in the order in which it lists them."""
        by_id = {dataset.id: dataset for dataset in self.datasets}
        listed = (by_id[name] for name in main.conditioning_data)
        return tuple(dataset for dataset in listed if dataset.is_reference)

    def mask_of(self, main: Dataset) -> Dataset | None:
        """Return the dataset of masks that weigh the loss of `main`, if it names one."""
        for dataset in self.datasets:
            if dataset.id in main.conditioning_data and dataset.is_mask:
                return dataset
        return None

    def pairs_folder(self, main: Dataset) -> Path:
        """Return the folder of the pairs tables of `main`."""
        return self.settings.cache_dir / "pairs" / main.id

    def vae_folder(self, dataset: Dataset) -> Path:
        """Return the folder of the latents of `dataset`."""
        return dataset.cache_dir_vae or self.settings.cache_dir / "vae" / dataset.id

    def text_embeds_folder(self, main: Dataset) -> Path:
        """Return the folder of the text tails of `main`; a text_embeds dataset may name it."""
        for dataset in self.datasets:
            if dataset.dataset_type == "text_embeds" and dataset.cache_dir:
                return dataset.cache_dir
        return self.settings.cache_dir / "text_embeds" / main.id

    def image_embeds_folder(self, main: Dataset) -> Path:
        """Return the folder of the image prefixes of `main`; a dataset it names may name it."""
        for dataset in self.datasets:
            if dataset.id == main.conditioning_image_embeds and dataset.cache_dir:
                return dataset.cache_dir
        return self.settings.cache_dir / "conditioning_image_embeds" / main.id

    def as_dict(self) -> dict[str, Any]:
        """Return the effective configuration, with its defaults, as plain JSON values."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "datasets": [dataset.model_dump(mode="json") for dataset in self.datasets],
        }
