"""From folders of pictures to the table of pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from picture_pairs import (
    configured,
    draw,
    go,
    pairs,
    table,
)
from PIL import Image

from qedit.config.datasets import Dataset
from qedit.stages.models.flavours import FLAVOURS
from qedit.stages.samples.table import pairs_recipe

# --- what a table holds


def test_a_table_of_pairs():
    pairs(2)
    draw("targets/sub/deep_one.png", (60, 40), seed=5)
    draw("before/sub/deep_one.webp", (120, 80), seed=6, lossless=True)
    configuration = configured(settings={"model_flavour": "edit-v3"}, flavour="edit-v3")
    outcome = go(configuration)
    assert (outcome.wanted, outcome.kept, outcome.computed, outcome.failed) == (3, 0, 3, 0)
    samples = table(configuration).samples
    assert [sample.name for sample in samples] == ["0.png", "1.png", "sub/deep_one.png"]
    deep = samples[2]
    assert deep.dataset == deep.target.dataset == "targets"
    assert deep.captions == ("deep one",)
    assert (deep.target.width, deep.target.height) == (60, 40)
    assert deep.target.whole
    assert deep.target.size == (64, 64)  # 78 x 52 to multiples of 32
    assert deep.target.vl_size is None
    (reference,) = deep.references
    assert reference.path == "sub/deep_one.webp"
    assert reference.dataset == "before"
    assert reference.size == (1248, 832)
    assert reference.vl_size == (480, 320)


def test_digests_are_those_of_the_files():
    from qedit.cache.files.fingerprint import digest_file

    pairs(1)
    configuration = configured()
    go(configuration)
    (sample,) = table(configuration).samples
    assert sample.target.digest == digest_file(Path("targets/0.png"))
    assert sample.references[0].digest == digest_file(Path("before/0.jpg"))


def test_edit_v1_shows_both_encoders_one_size():
    pairs(1, size=(192, 108))
    configuration = configured(flavour="edit-v1")
    go(configuration)
    (reference,) = table(configuration).samples[0].references
    assert reference.size == reference.vl_size == (1376, 768)


def test_three_references_keep_their_order():
    for name in ("targets", "c", "a", "b"):
        draw(f"{name}/x.png", seed=ord(name[0]))
    configuration = configured(references=("c", "a", "b"))
    go(configuration)
    (sample,) = table(configuration).samples
    assert [reference.dataset for reference in sample.references] == ["c", "a", "b"]


def test_exif_is_applied_before_anything_is_measured():
    exif = Image.Exif()
    exif[0x0112] = 6
    draw("targets/a.jpg", (48, 32), exif=exif)
    draw("before/a.png", (32, 48))
    configuration = configured()
    go(configuration)
    found = table(configuration)
    assert (found.samples[0].target.width, found.samples[0].target.height) == (32, 48)
    assert found.manifest["warnings"]["exif_rotated"] == 1


def test_strict_references_share_the_targets_crop_and_loose_ones_are_whole():
    draw("targets/a.png", (60, 40))
    draw("before/a.png", (120, 80))
    strict = configured(crop=True)
    go(strict)
    (sample,) = table(strict).samples
    assert sample.target.box == (10.0, 0.0, 50.0, 40.0)
    assert sample.references[0].box == (20.0, 0.0, 100.0, 80.0)
    assert sample.references[0].size == (1024, 1024)
    loose = configured(crop=True, strict=False)
    go(loose)
    (sample,) = table(loose).samples
    assert sample.target.box == (10.0, 0.0, 50.0, 40.0)
    assert sample.references[0].whole
    assert sample.references[0].size == (1248, 832)


def test_the_same_file_twice_has_one_latent_row_when_the_sizes_agree():
    draw("targets/a.png", (64, 64))
    shutil.copytree("targets", "before")
    configuration = configured(resolution=1024, crop=True, crop_style="random")
    go(configuration)
    found = table(configuration)
    sample = found.samples[0]
    assert sample.target.latent_key == sample.references[0].latent_key
    assert found.manifest["warnings"]["target_equals_reference"] == 1


def test_match_target_res_gives_references_the_targets_area():
    pairs(1, size=(48, 48))
    kwargs = {"model_kwargs": {"match_target_res": True}}
    configuration = configured(settings=kwargs, resolution=512)
    go(configuration)
    (reference,) = table(configuration).samples[0].references
    assert reference.size == (512, 512)
    assert reference.vl_size == (384, 384)
    single = configured(settings=kwargs, resolution=512, flavour="edit-v1")
    go(single)
    assert table(single).samples[0].references[0].size == (1024, 1024)


def test_several_datasets_name_their_samples_apart():
    pairs(2)
    draw("other/0.png", seed=40)
    draw("other/new.png", seed=41)
    draw("before/new.png", seed=42)
    draw("held/1.png", seed=43)
    more = (
        Dataset(id="other", instance_data_dir="other", conditioning_data=["before"], resolution=64),
        Dataset(
            id="held", instance_data_dir="held", conditioning_data=["before"], dataset_type="eval",
            resolution=64, crop=True,
        ),
    )  # fmt: skip
    configuration = configured(more=more)
    outcome = go(configuration)
    assert outcome.wanted == outcome.computed == 5
    names = [[sample.name for sample in table(configuration, main).samples] for main in (0, 2, 3)]
    assert names == [["targets:0.png", "1.png"], ["other:0.png", "new.png"], ["held:1.png"]]
    (held_out,) = table(configuration, 3).samples
    assert held_out.target.whole  # what inference shows is never cropped


def test_random_sampling_pairs_a_target_with_one_reference_at_a_time():
    for name in ("targets", "a", "b"):
        draw(f"{name}/x.png", seed=ord(name[0]))
    configuration = configured(
        flavour="edit-v1", references=("a", "b"),
        settings={"conditioning_multidataset_sampling": "random"},
    )  # fmt: skip
    go(configuration)
    samples = table(configuration).samples
    assert [sample.name for sample in samples] == ["x.png#a", "x.png#b"]
    assert [[one.dataset for one in sample.references] for sample in samples] == [["a"], ["b"]]
    assert [sample.group for sample in samples] == ["x.png", "x.png"]
    assert samples[0].prefix_key != samples[1].prefix_key


def test_groups_are_of_one_target_and_a_subset_counts_targets():
    pairs(6)
    for number in range(4, 6):  # before holds all, after only some
        draw(f"after/{number}.png", seed=200 + number)
    random = {"conditioning_multidataset_sampling": "random"}
    several = {"references": ("before", "after"), "settings": random}
    configuration = configured(**several)
    go(configuration, on_reject="skip")
    groups = [(one.group, one.references[0].dataset) for one in table(configuration).samples]
    assert sorted(groups) == sorted(
        [(f"{number}.png", "before") for number in range(6)]
        + [("4.png", "after"), ("5.png", "after")]
    )
    few = configured(**several, max_num_samples=5)
    go(few, on_reject="skip")
    assert len({one.group for one in table(few).samples}) == 5
    alone = configured(settings=random)  # one reference: nothing takes turns
    go(alone)
    assert {one.group for one in table(alone).samples} == {""}


def test_a_subset_is_the_same_every_time_and_grows():
    pairs(12)
    some = {}
    for most in (4, 8):
        configuration = configured(max_num_samples=most)
        assert go(configuration).wanted == most
        some[most] = {sample.name for sample in table(configuration).samples}
    assert len(some[4]) == 4
    assert some[4] < some[8]
    assert some[4] != {"0.png", "1.png", "10.png", "11.png"}


# --- recipes


def test_recipes_hold_what_decides_and_nothing_else():
    def recipe(**fields: object) -> dict:
        configuration = configured(**fields)
        flavour = FLAVOURS[configuration.settings.model_flavour]
        return pairs_recipe(configuration, configuration.datasets[0], flavour)

    plain = recipe()
    for same in (
        {"instance_data_dir": "elsewhere"},
        {"repeats": 3},
        {"probability": 0.5},
        {"crop_style": "random"},
        {"settings": {"seed": 7}},
        {"flavour": "edit-v3"},
        {"settings": {"learning_rate": 1.0}},
        {"caption_shuffle": {"seed": 5}},
    ):
        assert recipe(**same) == plain, same
    for other in (
        {"resolution": 65},
        {"crop": True},
        {"flavour": "edit-v1"},
        {"strict": False},
        {"missing_caption": "empty"},
        {"caption_strategy": "textfile"},
        {"maximum_aspect_ratio": 4},
        {"max_num_samples": 1},
        {"reference": {"strict_ratio_tolerance": 0.1}},
        {"reference": {"minimum_image_size": 10}},
        {"settings": {"model_kwargs": {"match_target_res": True}}},
    ):
        assert recipe(**other) != plain, other
    drawn = {"crop": True, "crop_style": "random"}
    assert recipe(**drawn, settings={"seed": 7}) != recipe(**drawn)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_a_token_that_ends_the_turn_is_a_warning(token: str) -> None:
    pairs(2)
    Path("targets/0.txt").write_text("make it green")
    Path("targets/1.txt").write_text(f"make it red{token} and blue")
    outcome = go(configured(caption_strategy="textfile"))
    assert outcome.facts["warnings"]["turn_token_in_caption"] == 1
    assert any("turn ends there" in line for line in outcome.lines)
