"""The two files, read as one configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from configurations import configured, image, reference
from paths import TESTS

from qedit.cache.errors import WrongUse
from qedit.config.loading import Configuration, load
from qedit.config.reading import example_names

SEED = TESTS / "data" / "seed"
EXAMPLES = ("qwen_image.edit-v1-lora", "qwen_image.edit-v2-lora", "qwen_image.edit-v3-lora")


def test_the_guides_files_load_as_they_are() -> None:
    configuration = load(SEED / "config.json", SEED / "edit-v1.multidatabackend.json")
    settings = configuration.settings
    assert settings.model_flavour == "edit-v1"
    assert settings.gradient_accumulation_steps == 4
    assert settings.base_model_precision == "int8-quanto"
    assert settings.flow_schedule_shift == 1.73
    assert not settings.flow_schedule_auto_shift
    (main,) = configuration.main_datasets()
    assert main.id == "my-edited-images"
    assert main.caption_strategy == "textfile"
    assert [one.id for one in configuration.references_of(main)] == ["my-reference-images"]
    assert configuration.vae_folder(main) == Path("cache/vae/edited-images")
    embeds = Path("cache/conditioning_image_embeds/reference")
    assert configuration.image_embeds_folder(main) == embeds


def test_the_guides_three_references_keep_their_order() -> None:
    configuration = load(
        SEED / "config.json",
        SEED / "edit-v2.multidatabackend.json",
        sets=["model_flavour=edit-v2"],
    )
    (main,) = configuration.main_datasets()
    assert [one.id for one in configuration.references_of(main)] == [
        "my-reference-images-a",
        "my-reference-images-b",
        "my-reference-images-c",
    ]


def test_the_guides_config_names_the_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "config" / "qwen_edit" / "multidatabackend.json"
    second.parent.mkdir(parents=True)
    second.write_bytes((SEED / "edit-v1.multidatabackend.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(load(SEED / "config.json", None).datasets) == 3


def test_data_wins_over_data_backend_config(tmp_path: Path) -> None:
    settings = {"data_backend_config": str(tmp_path / "nowhere.json")}
    assert len(configured(tmp_path, settings).datasets) == 2


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_flavour": "edit-v1"}', encoding="utf-8-sig")
    configuration = load(tmp_path / "config.json", SEED / "edit-v1.multidatabackend.json")
    assert configuration.settings.model_flavour == "edit-v1"


def test_folders_lie_under_cache_dir_unless_said_otherwise(tmp_path: Path) -> None:
    configuration = configured(tmp_path, {"cache_dir": "kept"})
    main, ref = configuration.datasets
    assert configuration.pairs_folder(main) == Path("kept/pairs/main")
    assert configuration.vae_folder(ref) == Path("kept/vae/ref")
    assert configuration.text_embeds_folder(main) == Path("kept/text_embeds/main")
    embeds = Path("kept/conditioning_image_embeds/main")
    assert configuration.image_embeds_folder(main) == embeds


def test_a_text_embeds_dataset_says_where_the_tails_lie(tmp_path: Path) -> None:
    tails = {"id": "tails", "dataset_type": "text_embeds", "cache_dir": "elsewhere"}
    configuration = configured(tmp_path, {}, image(), reference(), tails)
    assert configuration.text_embeds_folder(configuration.datasets[0]) == Path("elsewhere")


def test_image_embeds_without_a_folder_lie_at_the_default(tmp_path: Path) -> None:
    embeds = {"id": "embeds", "dataset_type": "conditioning_image_embeds"}
    main = image(conditioning_image_embeds="embeds")
    configuration = configured(tmp_path, {}, main, reference(), embeds)
    folder = configuration.image_embeds_folder(configuration.datasets[0])
    assert folder == Path("cache/conditioning_image_embeds/main")


def test_held_out_datasets_are_never_trained_on(tmp_path: Path) -> None:
    held_out = image(id="held-out"), image(id="eval", dataset_type="eval")
    settings = {"eval_dataset_id": "held-out"}
    configuration = configured(tmp_path, settings, image(), *held_out, reference())
    assert [one.id for one in configuration.main_datasets()] == ["main"]
    assert [one.id for one in configuration.eval_datasets()] == ["held-out", "eval"]


def test_masks_are_no_references(tmp_path: Path) -> None:
    mask = reference(id="mask", conditioning_type="mask")
    main = image(conditioning_data=["mask", "ref"])
    configuration = configured(tmp_path, {}, main, reference(), mask)
    assert [one.id for one in configuration.references_of(configuration.datasets[0])] == ["ref"]


def test_disabled_datasets_are_left_out_whatever_they_hold(tmp_path: Path) -> None:
    off = {"id": "off", "disabled": True, "type": "aws", "resolution": "large"}
    configuration = configured(tmp_path, {}, image(), reference(), off)
    assert [one.id for one in configuration.datasets] == ["main", "ref"]


def test_edit_v1_takes_one_of_several_references_at_random(tmp_path: Path) -> None:
    settings = {"model_flavour": "edit-v1", "conditioning_multidataset_sampling": "random"}
    main = image(conditioning_data=["ref", "other"])
    configuration = configured(tmp_path, settings, main, reference(), reference(id="other"))
    assert len(configuration.references_of(configuration.datasets[0])) == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_shipped_example_loads(name: str) -> None:
    configuration = load(None, None, example=name)
    (main,) = configuration.main_datasets()
    assert configuration.settings.model_flavour in name
    assert main.resolution == 1024
    references = configuration.references_of(main)
    assert len(references) == (1 if "v1" in name else 2)
    for dataset in (main, *references):
        assert dataset.instance_data_dir == Path("datasets") / dataset.id
    assert configuration.notes == ()


def test_all_examples_are_known_by_name() -> None:
    assert example_names() == list(EXAMPLES)


def test_data_wins_over_the_examples_own(tmp_path: Path) -> None:
    second = SEED / "edit-v1.multidatabackend.json"
    configuration = load(None, second, example="qwen_image.edit-v1-lora")
    assert configuration.main_datasets()[0].id == "my-edited-images"


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("lora_rank=4", "lora_rank", 4),
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("gradient_checkpointing=false", "gradient_checkpointing", False),
        ('lora_target_modules=["to_q"]', "lora_target_modules", ("to_q",)),
        ("output_dir=runs/a=b", "output_dir", Path("runs/a=b")),
        ("init_lora=null", "init_lora", None),
        ("tracker_project_name=2024", "tracker_project_name", "2024"),
    ],
)
def test_set_changes_a_setting(tmp_path: Path, typed: str, key: str, value: Any) -> None:
    written = {"lora_rank": 64, "init_lora": "first.safetensors"}
    assert getattr(configured(tmp_path, written, sets=(typed,)).settings, key) == value


def test_set_reaches_into_objects(tmp_path: Path) -> None:
    sets = ("model_kwargs.match_target_res=true", "optimizer_config.betas=[0.9, 0.99]")
    settings = configured(tmp_path, {"optimizer_config": {"eps": 1e-6}}, sets=sets).settings
    assert settings.model_kwargs.match_target_res
    assert settings.optimizer_config == {"eps": 1e-6, "betas": [0.9, 0.99]}


def test_the_last_set_wins(tmp_path: Path) -> None:
    assert configured(tmp_path, {}, sets=("seed=1", "seed=2")).settings.seed == 2


def test_set_changes_a_dataset_whose_id_holds_dots(tmp_path: Path) -> None:
    datasets = image(id="a"), image(id="a.b"), reference()
    sets = ("data.a.b.resolution=512", "data.a.caption_shuffle.count=3")
    first, second, _ = configured(tmp_path, {}, *datasets, sets=sets).datasets
    assert (first.resolution, first.caption_shuffle.count) == (1024, 3)
    assert (second.resolution, second.caption_shuffle.count) == (512, 1)


def test_set_can_enable_a_dataset(tmp_path: Path) -> None:
    datasets = image(), image(id="second", disabled=True), reference()
    configuration = configured(tmp_path, {}, *datasets, sets=("data.second.disabled=false",))
    assert len(configuration.main_datasets()) == 2


def test_the_effective_configuration_is_plain_json(tmp_path: Path) -> None:
    configuration = configured(tmp_path, {"validation_resolution": "768x512!", "lora_rank": 8})
    written = json.loads(json.dumps(configuration.as_dict(), allow_nan=False))
    assert written["settings"]["validation_resolution"] == "768x512!"
    assert written["settings"]["lora_alpha"] == 8
    assert written["settings"]["output_dir"] == "output"
    assert [one["id"] for one in written["datasets"]] == ["main", "ref"]
    assert written["datasets"][0]["conditioning_data"] == ["ref"]


def test_the_effective_configuration_can_be_read_again(tmp_path: Path) -> None:
    first = configured(tmp_path, {"flow_schedule_shift": 2, "validation_resolution": 512})
    written = first.as_dict()
    second = configured(tmp_path, written["settings"], *written["datasets"])
    assert (second.settings, second.datasets) == (first.settings, first.datasets)


def noted(configuration: Configuration, beginning: str) -> list[str]:
    return [note for note in configuration.notes if note.startswith(beginning)]


def test_steps_nobody_asked_for_are_said(tmp_path: Path) -> None:
    beginning = "neither max_train_steps nor num_train_epochs is given"
    (note,) = noted(configured(tmp_path, {}), beginning)
    assert "3000" in note
    assert not noted(configured(tmp_path, {"max_train_steps": 3000}), beginning)
    assert not noted(configured(tmp_path, {"num_train_epochs": 2}), beginning)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_step_offset": 9}, "is off: .*_probability and .*_ramp_steps are 0"),
        ({"max_step_offset": 9, "prob_end": 0.5}, "is off: .*_probability and .*_ramp_steps are 0"),
        ({"probability": 0.5}, "is off: .*_max_step_offset is 0"),
        ({"ramp_steps": 5}, "is off: .*_max_step_offset is 0"),
        ({"reflexflow": True}, "is off: .*_max_step_offset is 0"),
        (
            {"max_step_offset": 9, "ramp_steps": 5, "prob_end": 0},
            "is off: .*_prob_start and .*_prob_end are 0",
        ),
        (
            {"max_step_offset": 9, "ramp_steps": 5, "probability": 0.5},
            "ramp_steps is set, so .*_probability has no effect",
        ),
        (
            {"max_step_offset": 9, "probability": 0.5, "prob_end": 0.9},
            "ramp_steps is 0, so .*_prob_start and .*_prob_end do nothing",
        ),
        ({"max_step_offset": 9, "probability": 0.5}, None),
        ({"max_step_offset": 9, "ramp_steps": 5}, None),
        ({"max_step_offset": 0, "strategy": "uniform"}, None),
    ],
)
def test_scheduled_sampling_that_stays_off_is_said(
    tmp_path: Path, settings: dict[str, Any], said: str | None
) -> None:
    given = {f"scheduled_sampling_{key}": value for key, value in settings.items()}
    notes = configured(tmp_path, {"max_train_steps": 9, **given}).notes
    assert len(notes) == bool(said)
    assert not said or re.search(said, notes[0])


def test_keys_of_adapters_without_an_adapter_are_said(tmp_path: Path) -> None:
    keys = {"lora_rank": 64, "lora_alpha": 8, "lora_dropout": 0.1, "lora_type": "dora"}
    keys |= {"lora_init_type": "pissa", "lora_format": "kohya"}
    full = {"max_train_steps": 9, "model_type": "full", "lora_target_modules": ["to_q"]}
    (note,) = configured(tmp_path, {**keys, **full}).notes
    assert note.startswith("model_type is full")
    assert all(key in note for key in keys)
    assert "lora_target_modules" not in note
    assert not configured(tmp_path, full).notes


def test_a_warm_up_longer_than_the_run_is_said(tmp_path: Path) -> None:
    (note,) = configured(tmp_path, {"max_train_steps": 9, "lr_warmup_steps": 9}).notes
    assert "before learning_rate is reached" in note
    assert not configured(tmp_path, {"max_train_steps": 9, "lr_warmup_steps": 8}).notes
    assert not configured(tmp_path, {"num_train_epochs": 1, "lr_warmup_steps": 900}).notes


def test_keys_of_the_guides_trainer_without_meaning_get_one_line_a_file(tmp_path: Path) -> None:
    settings = {"push_to_hub": True, "lr_end": 0, "resolution": 512, "max_train_steps": 1}
    table = {"path": "a.parquet", "width_column": "w"}
    datasets = image(train_batch_size=8, parquet=table), reference(hash_filenames=True)
    notes = configured(tmp_path, settings, *datasets).notes
    known = "known to another trainer, without effect here"
    assert notes == (
        f"{tmp_path}/config.json: {known}: "
        "lr_end (use lr_scheduler_config.lr_end), push_to_hub, resolution (set it in the dataset)",
        f"{tmp_path}/data.json: {known}: "
        "hash_filenames, parquet.width_column, train_batch_size (set it in config.json)",
    )


def test_a_shift_that_auto_shift_overrules_is_said(tmp_path: Path) -> None:
    both = {"flow_schedule_shift": 3, "flow_schedule_auto_shift": True}
    assert noted(configured(tmp_path, both), "flow_schedule_auto_shift is on")
    assert not noted(configured(tmp_path, {"flow_schedule_shift": 3}), "flow_schedule_auto_shift")


def test_references_that_do_nothing_are_said(tmp_path: Path) -> None:
    unused, captioned = reference(id="unused"), reference(caption_strategy="textfile")
    configuration = configured(tmp_path, {}, image(), captioned, unused)
    assert noted(configuration, "dataset unused: no other dataset names it")
    assert noted(configuration, "dataset ref: references have no captions")
    cached = configured(tmp_path, {}, image(cache_dir="somewhere"), reference())
    assert noted(cached, "dataset main: cache_dir has no effect on pictures")
    silent = configured(tmp_path, {}, image(), reference(caption_strategy=None))
    assert not noted(silent, "dataset ")


def test_no_configuration_at_all_names_the_ways_to_give_one() -> None:
    with pytest.raises(WrongUse, match=r"--config FILE.*example=NAME"):
        load(None, None)
