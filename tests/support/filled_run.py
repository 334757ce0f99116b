"""A run whose cached rows are made up, so that training is tested without any encoder.

The pairs table and the stores are real, and so is the tiny checkpoint; only what the rows
hold is invented: a target that follows from its reference and its caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from samples import made_sample
from tiny_checkpoints import tiny_copy

from qedit.cache.store.store import Store
from qedit.config.loading import Configuration, load
from qedit.stages.models.checkpoint.checkpoint import flavour_of, open_checkpoint
from qedit.stages.models.tiny.tiny import TEXT_WIDTH
from qedit.stages.samples.sample import NULL_CAPTION, Picture, Sample
from qedit.stages.samples.table import pairs_recipe, table_folder, write_pairs
from qedit.stages.stores.bfloat16 import bits_of
from qedit.stages.stores.run_stores import open_stores

CHANNELS = 16
FACTOR = 8
# What a caption asks for: the target is the reference times this.
EDITS = {"keep it": 1.0, "turn it over": -1.0}
PLAIN: dict[str, Any] = {
    "max_train_steps": 6,
    "checkpoint_step_interval": 2,
    "train_batch_size": 2,
    "lora_rank": 4,
    "mixed_precision": "no",
    "learning_rate": 1e-2,
    "validation_disable": True,
}


def made_samples_with_edits(count: int, *, sizes: Sequence[tuple[int, int]]) -> list[Sample]:
    """Samples that take turns in size and in what is asked for."""
    captions = list(EDITS)
    return [
        made_sample(
            f"{place:03}.png",
            size=sizes[place % len(sizes)],
            captions=(captions[place // len(sizes) % len(captions)],),
        )
        for place in range(count)
    ]


def made_configuration(
    folder: Path,
    *,
    flavour: str = "edit-v2",
    data: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Configuration:
    """A configuration whose every path lies in `folder`."""
    checkpoint = tiny_copy(folder / "checkpoint", flavour, vae_area=64 * 64, vl_area=56 * 56)
    (folder / "pictures").mkdir(exist_ok=True)
    steps = {} if "num_train_epochs" not in settings else {"max_train_steps": None}
    config = {
        "model_flavour": flavour,
        "pretrained_model_name_or_path": str(checkpoint),
        "output_dir": str(folder / "output"),
        "cache_dir": str(folder / "cache"),
        **PLAIN,
        **steps,
        **settings,
    }
    pictures = str(folder / "pictures")
    datasets = [
        {
            "id": "edits",
            "instance_data_dir": pictures,
            "conditioning_data": ["edits-before-0"],
            **(data or {}),
        },
        {
            "id": "edits-before-0",
            "dataset_type": "conditioning",
            "instance_data_dir": pictures,
        },
    ]
    files = {"config.json": config, "data.json": datasets}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return load(folder / "config.json", folder / "data.json")


def fill(configuration: Configuration, samples: Sequence[Sample]) -> None:
    """Write the pairs table and every row that `samples` need, the null tails too."""
    write_table(configuration, samples)
    fill_stores(configuration, samples)


def write_table(configuration: Configuration, samples: Sequence[Sample]) -> None:
    """Write the pairs table of `samples`; nothing of what its rows hold need be there."""
    (main,) = configuration.main_datasets()
    flavour = flavour_of(configuration.settings)
    write_pairs(
        table_folder(configuration, main, flavour),
        recipe=pairs_recipe(configuration, main, flavour),
        rows=[(sample, ()) for sample in samples],
        rejections=(),
        inputs="",
        accept=True,
    )


def fill_stores(configuration: Configuration, samples: Sequence[Sample]) -> None:
    """Add the rows of `samples` to the stores, those of one shape as one part."""
    stores = open_stores(configuration, open_checkpoint(configuration.settings))
    befores, targets, prefixes, tails = {}, {}, {}, {}
    for sample in samples:
        (before,) = sample.references
        start = latents_of(before)
        befores[before.latent_key] = start
        targets[sample.target.latent_key] = EDITS.get(sample.captions[0], 1.0) * start
        prefixes[sample.prefix_key] = prefix_of(sample)
        for caption in (*sample.captions, NULL_CAPTION):
            tails[sample.tail_key(caption)] = tail_of(caption)
    _add(stores.latents.of("edits-before-0"), befores)
    _add(stores.latents.of("edits"), targets)
    _add(stores.prefixes.of("edits"), prefixes)
    _add(stores.tails.of("edits"), tails)


def _add(store: Store, rows: Mapping[str, torch.Tensor]) -> None:
    with store.writing():
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for key in store.missing(rows):
            ragged = () if store.layout.ragged else rows[key].shape
            by_shape.setdefault(tuple(ragged), []).append(key)
        for keys in by_shape.values():
            store.add(keys, [bits_of(rows[key]) for key in keys])


def _random(name: str, *shape: int) -> torch.Tensor:
    seed = list(name.encode())
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values)


def latents_of(picture: Picture) -> torch.Tensor:
    """Two plain halves, left and right, each of a colour of its own."""
    width, height = (edge // FACTOR for edge in picture.size)
    left, right = _random(picture.digest, 2, CHANNELS, 1, 1)
    return torch.cat(
        [left.expand(-1, height, width // 2), right.expand(-1, height, width - width // 2)], dim=2
    )


def prefix_of(sample: Sample) -> torch.Tensor:
    """A few tokens that stand for the references."""
    return _random(sample.prefix_key, 4, TEXT_WIDTH)


def tail_of(caption: str) -> torch.Tensor:
    """As many tokens as the caption has words, and two more."""
    return _random(caption, len(caption.split()) + 2, TEXT_WIDTH)
