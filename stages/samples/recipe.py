"""The recipe of a pairs table: everything that decides it, except the files' contents.

The recipe is everything that decides the table except what the files hold. A renamed folder is
the same data, so no folder is in it. But two runs may share a cache folder and give one id to
different folders: then the table belongs to whoever ran `pair` last, and the other run is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.errors import Broken, NotComplete, WrongUse
from ...cache.regular_file import content_of
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..models.flavours import Flavour

MOST_LIST_BYTES = 10_000_000
_TABLES = ("parquet", "csv", "jsonl")


def pairs_recipe(configuration: Configuration, main: Dataset, flavour: Flavour) -> dict[str, Any]:
    """Return everything that decides the table of `main`, except what the files hold."""
    settings = configuration.settings
    held_out = main.id in {dataset.id for dataset in configuration.eval_datasets()}
    crop = None if held_out else _crop_recipe(main, settings.seed)
    references = configuration.references_of(main)
    sampling = settings.conditioning_multidataset_sampling
    mask = configuration.mask_of(main)
    return {
        "stage": "pair",
        "version": 1,
        "dataset": main.id,
        "vae_area": flavour.vae_area,
        "vl_area": flavour.vl_area,
        "match_target_res": match_target_res(configuration, flavour),
        "sampling": sampling,
        "target": {
            "resolution": main.resolution,
            "resolution_type": main.resolution_type,
            "crop": crop,
            "max_num_samples": main.max_num_samples,
            **_bounds_recipe(main),
        },
        "references": [
            {**_picture_recipe(reference), "type": reference.conditioning_type}
            for reference in references
        ],
        "captions": _captions_recipe(main),
        # keys that came later stand in the recipes of those alone who use them
        **({"groups": True} if sampling == "random" and len(references) > 1 else {}),
        **({"mask": _picture_recipe(mask)} if mask else {}),
    }


def match_target_res(configuration: Configuration, flavour: Flavour) -> bool:
    """Return whether references get the target's area, which edit-v1 cannot do."""
    wanted = configuration.settings.model_kwargs.match_target_res
    return wanted and flavour.max_references > 1


def _picture_recipe(dataset: Dataset) -> dict[str, Any]:
    is_loose = dataset.conditioning_type == "reference_loose"
    return {
        "dataset": dataset.id,
        "tolerance": None if is_loose else dataset.strict_ratio_tolerance,
        **_bounds_recipe(dataset),
    }


def _bounds_recipe(dataset: Dataset) -> dict[str, Any]:
    least = dataset.minimum_image_size
    return {
        "minimum_image_size": least and [least, dataset.resolution_type],
        "ratios": [dataset.minimum_aspect_ratio, dataset.maximum_aspect_ratio],
    }


def _crop_recipe(main: Dataset, seed: int) -> dict[str, Any] | None:
    if not main.crop:
        return None
    return {
        "aspect": main.crop_aspect,
        "style": main.crop_style,
        "ratios": list(main.crop_aspect_buckets),
        "maximum_image_size": main.maximum_image_size,
        "target_downsample_size": main.target_downsample_size,
        "seed": seed if "random" in (main.crop_aspect, main.crop_style) else None,
    }


def _captions_recipe(main: Dataset) -> dict[str, Any]:
    shuffle = main.caption_shuffle
    table = getattr(main, main.caption_strategy) if main.caption_strategy in _TABLES else None
    return {
        "strategy": main.caption_strategy,
        "missing": main.missing_caption,
        "instance_prompt": list(main.instance_prompt),
        "prepend": main.prepend_instance_prompt,
        "only": main.only_instance_prompt,
        "split_lines": not main.disable_multiline_split,
        "shuffle": shuffle.model_dump(mode="json") if shuffle.enable else None,
        "filter": list(filter_entries(main)),
        "table": table and table.model_dump(mode="json", exclude={"path"}),
    }


def filter_entries(main: Dataset) -> tuple[str, ...]:
    """Return what `caption_filter_list` takes out of the captions of `main`, blank lines skipped.

    Raises:
        WrongUse: it names a file that cannot be read.
    """
    listed = main.caption_filter_list
    if isinstance(listed, Path):
        try:
            listed = tuple(content_of(listed, MOST_LIST_BYTES).decode("utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError, Broken) as error:
            raise WrongUse(
                f"Dataset {main.id}: the caption_filter_list {listed} cannot be read: {error}.",
                "Name a UTF-8 text file with one entry a line, or write the entries as a list.",
            ) from error
    return tuple(entry for entry in listed if entry.strip())


def picture_datasets(configuration: Configuration, main: Dataset) -> tuple[Dataset, ...]:
    """Return the datasets of a sample's pictures: `main`, its references, its mask if any."""
    mask = configuration.mask_of(main)
    return (main, *configuration.references_of(main), *([mask] if mask else []))


def folders_of(configuration: Configuration, main: Dataset) -> dict[str, str]:
    """Return dataset id -> the folder of its pictures, of all that the pairs of `main` need."""
    datasets = picture_datasets(configuration, main)
    return {dataset.id: str(dataset.instance_data_dir) for dataset in datasets}


def refuse_others(configuration: Configuration, main: Dataset, made_of: Mapping[str, str]) -> None:
    """Make sure that a table of `main` was made of the folders that are configured.

    A folder that is gone may be another one's old name, or lie on another machine: nothing is
    known of it.

    Args:
        made_of: what `folders_of` returned when the table was made.

    Raises:
        NotComplete: it was made of others, which are still there.
    """
    for dataset, here in folders_of(configuration, main).items():
        there = made_of.get(dataset, here)
        folders = (Path(there), Path(here))
        if there != here and all(map(Path.is_dir, folders)) and not folders[0].samefile(here):
            raise NotComplete(
                f"The pairs of dataset {main.id} were last made of the pictures in {there}, "
                f"not of those in {here}.",
                f"Run `qedit pair`. If {there} is another run's, give each an `id` of its own.",
            )
