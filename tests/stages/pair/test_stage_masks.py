"""Masks: loss weights that lie beside their targets and take their geometry; never references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_pairs import (
    configured,
    damage,
    draw,
    folder,
    go,
    pairs,
    rejected,
    table,
)
from PIL import Image

from qedit.cache.errors import WrongUse
from qedit.cache.files.fingerprint import fingerprint, key_of
from qedit.config.configuration import Configuration
from qedit.config.datasets import Dataset
from qedit.stages.models.flavours import FLAVOURS
from qedit.stages.samples.store_keys import pairs_keys
from qedit.stages.samples.table import manifest_in, pairs_recipe, used_main_datasets

FLAVOUR = FLAVOURS["edit-v2"]


def masked(*, mask: dict | None = None, **target: object) -> Configuration:
    masks = Dataset(
        id="masks",
        dataset_type="conditioning",
        conditioning_type="mask",
        **{"instance_data_dir": "masks"} | (mask or {}),
    )
    return configured(more=(masks,), **{"conditioning_data": ["masks", "before"]} | target)


def draw_mask(path: str, size: tuple[int, int] = (48, 32), *, white: float = 0.5) -> None:
    values = np.zeros((size[1], size[0]), np.uint8)
    values[:, : round(white * size[0])] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def masks(count: int) -> None:
    for number in range(count):
        draw_mask(f"masks/{number}.png")


def test_a_mask_is_no_reference_and_takes_the_targets_geometry() -> None:
    draw("targets/sub/a.png", (60, 40))
    draw("before/sub/a.png", (60, 40), seed=1)
    draw_mask("masks/sub/a.webp", (120, 80))
    configuration = masked(crop=True)
    go(configuration)
    (sample,) = table(configuration).samples
    assert [one.dataset for one in sample.references] == ["before"]
    assert sample.mask is not None
    assert (sample.mask.dataset, sample.mask.path) == ("masks", "sub/a.webp")
    assert sample.target.box == (10.0, 0.0, 50.0, 40.0)
    assert sample.mask.box == (20.0, 0.0, 100.0, 80.0)
    assert sample.mask.size == sample.target.size == (64, 64)
    assert sample.mask.vl_size is None


def test_the_key_of_a_mask_names_its_bytes_and_geometry() -> None:
    pairs(1)
    masks(1)
    keys = {}
    for resolution in (64, 128):
        configuration = masked(resolution=resolution)
        go(configuration)
        (sample,) = table(configuration).samples
        mask = sample.mask
        assert mask is not None
        keys[resolution] = mask.weight_key
        expected = {"mask": mask.digest, "box": None, "size": list(sample.target.size)}
        assert mask.weight_key == key_of(expected)
        assert mask.weight_key != mask.latent_key
    assert keys[64] != keys[128]


def test_samples_with_and_without_masks_give_the_weights_that_are_wanted() -> None:
    pairs(3)
    draw("other/x.png", seed=7)
    draw("before/x.png", seed=8)
    masks(3)
    other = Dataset(id="other", instance_data_dir="other", conditioning_data=["before"])
    plain = masked()
    configuration = Configuration(plain.settings, (*plain.datasets, other))
    go(configuration)
    weights = pairs_keys(configuration, configuration.datasets[0], FLAVOUR).weights()
    samples = table(configuration).samples
    assert weights.keys.to_pylist() == [one.mask.weight_key for one in samples if one.mask]
    assert weights.rows.tolist() == [0, 1, 2]
    none = pairs_keys(configuration, configuration.datasets[-1], FLAVOUR).weights()
    assert (len(none.keys), len(none.rows)) == (0, 0)
    assert table(configuration, -1).samples[0].mask is None


def test_masks_that_are_missing_broken_black_or_of_another_shape() -> None:
    pairs(6)
    masks(6)
    Path("masks/1.png").unlink()
    damage("masks/2.png")
    draw_mask("masks/3.png", (48, 33))
    draw_mask("masks/4.png", white=0)
    draw_mask("masks/extra.png")
    configuration = masked()
    assert rejected(configuration) == {
        "1.png": "missing_mask",
        "2.png": "unreadable",
        "3.png": "ratios_differ",
        "4.png": "empty_mask",
        "extra.png": "extra_mask",
    }
    assert [one.name for one in table(configuration).samples] == ["0.png", "5.png"]
    lenient = masked(mask={"strict_ratio_tolerance": 0.05})
    assert "3.png" not in rejected(lenient)


def test_a_black_picture_that_is_no_mask_is_used() -> None:
    pairs(1)
    Image.new("RGB", (48, 32)).save("before/0.jpg")
    assert rejected(configured()) == {}


def test_one_white_dot_is_a_mask() -> None:
    pairs(1)
    values = np.zeros((32, 48), np.uint8)
    values[17, 29] = 255
    Path("masks").mkdir()
    Image.fromarray(values).save("masks/0.png")
    assert rejected(masked()) == {}


def test_a_folder_of_masks_that_holds_references_is_noticed() -> None:
    pairs(2)
    configuration = masked(mask={"instance_data_dir": "before"})
    outcome = go(configuration)
    assert outcome.facts["warnings"]["mask_equals_picture"] == 2


def test_a_folder_of_masks_with_other_names_is_the_wrong_folder() -> None:
    pairs(2)
    draw_mask("masks/z.png")
    with pytest.raises(WrongUse, match=r"picture in masks(.|\n)*z\.png"):
        go(masked())


def test_a_changed_mask_changes_its_sample_alone() -> None:
    pairs(3)
    masks(3)
    configuration = masked()
    go(configuration)
    before = table(configuration).samples
    draw_mask("masks/1.png", white=0.25)
    outcome = go(configuration)
    assert (outcome.facts["changed"], outcome.kept) == (1, 2)
    after = table(configuration).samples
    assert after[1].mask != before[1].mask
    assert after[1].target == before[1].target
    assert after[::2] == before[::2]


def test_masks_are_part_of_the_recipe_of_those_who_use_them() -> None:
    def name(configuration: Configuration) -> str:
        (main,) = used_main_datasets(configuration)
        return fingerprint(pairs_recipe(configuration, main, FLAVOUR))

    assert name(masked()) != name(configured())
    assert name(masked(mask={"strict_ratio_tolerance": 0.1})) != name(masked())
    assert name(masked(mask={"instance_data_dir": "moved"})) == name(masked())


def test_a_table_from_before_masks_and_groups_is_read() -> None:
    pairs(2)
    configuration = configured()
    go(configuration)
    samples = table(configuration).samples
    where = folder(configuration)
    path = where / manifest_in(where)["pairs"]
    old = pq.read_table(path).drop_columns(["mask", "group"])

    from qedit.stages.samples.schema import samples_in

    assert samples_in(old) == samples
    assert {sample.group for sample in samples} == {""}
