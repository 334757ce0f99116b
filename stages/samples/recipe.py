"""The recipe of a pairs table: everything that decides it, except what the files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...cache.errors import WrongUse
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..models.flavours import Flavour

_TABLES = ("parquet", "csv", "jsonl")


def pairs_recipe(configuration: Configuration, main: Dataset, flavour: Flavour) -> dict[str, Any]:
    """Everything that decides the table of `main`, except what the files hold.

    Folders are not in it: a renamed folder is the same data.
    """
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
            {
                "dataset": reference.id,
                "type": reference.conditioning_type,
                "tolerance": reference.strict_ratio_tolerance
                if reference.conditioning_type == "reference_strict"
                else None,
                **_bounds_recipe(reference),
            }
            for reference in references
        ],
        "captions": _captions_recipe(main),
        # keys that came later stand in the recipes of those alone who use them
        **({"groups": True} if sampling == "random" and len(references) > 1 else {}),
        **({"mask": _mask_recipe(mask)} if mask else {}),
    }


def _mask_recipe(mask: Dataset) -> dict[str, Any]:
    return {
        "dataset": mask.id,
        "tolerance": mask.strict_ratio_tolerance,
        **_bounds_recipe(mask),
    }


def match_target_res(configuration: Configuration, flavour: Flavour) -> bool:
    """Whether references get the target's area: not an option of edit-v1."""
    wanted = configuration.settings.model_kwargs.match_target_res
    return wanted and flavour.max_references > 1


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
    """What `caption_filter_list` takes out of the captions of `main`; blank lines are left out.

    Raises:
        WrongUse: it names a file that cannot be read.
    """
    listed = main.caption_filter_list
    if isinstance(listed, Path):
        try:
            listed = tuple(listed.read_text(encoding="utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUse(
                f"Dataset {main.id}: the caption_filter_list {listed} cannot be read: {error}.",
                "Name a UTF-8 text file with one entry a line, or write the entries as a list.",
            ) from error
    return tuple(entry for entry in listed if entry.strip())
