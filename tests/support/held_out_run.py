"""Makes a filled run with a second dataset that is only measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filled_run import fill, fill_stores, made_configuration
from samples import made_sample

from qedit.config.loading import Configuration, load
from qedit.stages.models.checkpoint.checkpoint import flavour_of
from qedit.stages.samples.sample import Sample
from qedit.stages.samples.table import pairs_recipe, table_folder, write_pairs

# their targets follow from references that no sample of the training set has
HELD = [
    made_sample(f"held-{place}.png", size=size, captions=(caption,), dataset="held")
    for place, (size, caption) in enumerate(
        [((64, 64), "keep it"), ((64, 96), "turn it over"), ((64, 64), "turn it over")]
    )
]


def made_held_out(folder: Path, *, kind: str = "eval", **settings: Any) -> Configuration:
    """The configuration of `made_configuration`, with dataset "held" (`dataset_type` kind)."""
    sets = [f"{key}={settings.pop(key)}" for key in ("eval_dataset_id",) if key in settings]
    made_configuration(folder, **settings)
    pictures = str(folder / "pictures")
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    data += [
        {
            "id": "held",
            "dataset_type": kind,
            "instance_data_dir": pictures,
            "conditioning_data": ["held-before-0"],
        },
        {"id": "held-before-0", "dataset_type": "conditioning", "instance_data_dir": pictures},
    ]
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    # config.json may name the dataset only once the other file has it
    return load(folder / "config.json", folder / "data.json", sets=sets)


def fill_held_out(
    configuration: Configuration, samples: list[Sample], *, held: list[Sample] = HELD
) -> None:
    """Fill the run with `samples` to train on and `held` to measure."""
    fill(configuration, samples)
    write_held_pairs(configuration, held)
    fill_stores(configuration, held)


def write_held_pairs(configuration: Configuration, held: list[Sample]) -> None:
    """The pairs table of dataset "held"."""
    (main,) = configuration.eval_datasets()
    flavour = flavour_of(configuration.settings)
    write_pairs(
        table_folder(configuration, main, flavour),
        recipe=pairs_recipe(configuration, main, flavour),
        rows=[(sample, ()) for sample in held],
        rejections=(),
        inputs="",
        accept=True,
    )
