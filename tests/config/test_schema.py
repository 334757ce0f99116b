"""The JSON Schemas accept what qedit accepts, and an editor marks what is plainly wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from configurations import configured, image, reference
from json_schema import wrongs
from paths import ROOT, TESTS

from qedit.cache.errors import WrongUse
from qedit.config.comments import parse
from qedit.config.key_table import every_key
from qedit.config.remarks import known_elsewhere
from qedit.config.schema import schema_of
from qedit.config.settings import Settings

CONFIG, DATA = schema_of("config.json"), schema_of("multidatabackend.json")
# files that people wrote, or that qedit ships
SETTINGS_FILES = [
    TESTS / "data/seed/config.json",
    *ROOT.glob("config/examples/*/config.json"),
]
DATA_FILES = [
    *ROOT.glob("tests/data/seed/*.multidatabackend.json"),
    *ROOT.glob("config/examples/*/multidatabackend.json"),
]


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda path: f"{path.parent.name}")
def test_settings_files_fit_their_schema(path: Path) -> None:
    assert wrongs(parse(path.read_text(encoding="utf-8")), CONFIG) == []


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_data_files_fit_their_schema(path: Path) -> None:
    assert wrongs(parse(path.read_text(encoding="utf-8")), DATA) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"validation_guidance": "4.0", "learning_rate": "1e-4", "lora_rank": "8"},
        {"gradient_checkpointing": "false", "use_ema": "True", "keep_best": 1},
        {"report_to": None, "revision": 2024, "init_lora": None, "resume_from_checkpoint": None},
        {"lora_target_modules": ["to_q"], "blocks_to_stream": "12", "memory": "auto"},
        {"max_train_steps": 0, "num_train_epochs": "2"},
        {"validation_resolution": 768},
        {"validation_resolution": "1024X768!"},
        {"optimizer_config": {"betas": [0.9, 0.99]}, "model_kwargs": {"match_target_res": "yes"}},
        {"$schema": "./config.schema.json"},
        {"resolution": 512, "max_train_steps": 1},  # SimpleTuner's, without effect
    ],
    ids=str,
)
def test_what_is_read_kindly_fits_too(tmp_path: Path, settings: dict[str, Any]) -> None:
    configured(tmp_path, settings)
    assert wrongs({"model_flavour": "edit-v2", **settings}, CONFIG) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 7, "resolution": "512", "crop": "no", "repeats": "2", "max_num_samples": 0},
        {"conditioning_data": ["ref"], "instance_prompt": "a cat"},
        {"caption_filter_list": ["red", "s/a/b/"], "crop_aspect_buckets": ["0.5", 2]},
        {"csv": {"path": "a.csv", "caption_column": "text", "width_column": "w"}},
        {"caption_shuffle": {"enable": True, "split_on": ";"}, "hash_filenames": True},
    ],
    ids=str,
)
def test_fields_that_are_read_kindly_fit_too(tmp_path: Path, fields: dict[str, Any]) -> None:
    entry = image(**fields)
    configured(tmp_path, {}, entry, reference(caption_strategy=None))
    assert wrongs([entry, reference(caption_strategy=None)], DATA) == []


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"lora_rnk": 4}, "$.lora_rnk additionalProperties"),
        ({"mixed_precision": "fp16"}, "$.mixed_precision enum"),
        ({"model_family": "flux"}, "$.model_family const"),
        ({"lora_rank": 0}, "$.lora_rank minimum"),
        ({"lora_rank": 1.5}, "$.lora_rank type"),
        ({"lora_rank": True}, "$.lora_rank type"),
        ({"lora_rank": "many"}, "$.lora_rank pattern"),
        ({"learning_rate": 0}, "$.learning_rate exclusiveMinimum"),
        ({"ema_decay": 1}, "$.ema_decay exclusiveMaximum"),
        ({"caption_dropout_probability": 1.1}, "$.caption_dropout_probability maximum"),
        ({"quantize_activations": "maybe"}, "$.quantize_activations pattern"),
        ({"output_dir": 3}, "$.output_dir type"),
        ({"lora_target_modules": "attn"}, "$.lora_target_modules anyOf"),
        ({"validation_resolution": "large"}, "$.validation_resolution anyOf"),
        ({"model_kwargs": {"match": True}}, "$.model_kwargs.match additionalProperties"),
        ({"model_flavour": "edit-v4"}, "$.model_flavour enum"),
    ],
)
def test_what_is_refused_is_marked(tmp_path: Path, settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(WrongUse):
        configured(tmp_path, settings)
    assert wrongs({"model_flavour": "edit-v2", **settings}, CONFIG) == [wrong]


def test_a_required_key_that_is_missing_is_marked() -> None:
    assert wrongs({}, CONFIG) == ["$ required"]
    assert wrongs([{}], DATA) == ["$[0] required"]
    assert wrongs({"id": "edited"}, DATA) == ["$ type"]
    assert wrongs([image(conditionng_data="ref")], DATA) == [
        "$[0].conditionng_data additionalProperties"
    ]


def test_a_key_is_explained_with_its_reason_and_what_a_change_costs() -> None:
    for file, properties in (
        ("config.json", CONFIG["properties"]),
        ("multidatabackend.json", DATA["items"]["properties"]),
    ):
        for key in every_key():
            if key.file == file and "." not in key.name:
                text = properties[key.name]["description"]
                assert text.startswith(key.meaning)
                assert text.endswith(f" Why: {key.why} A change costs {key.change}.")
    shuffle = CONFIG["$defs"]["ModelKwargs"]["properties"]["match_target_res"]
    assert "1 megapixel" in shuffle["description"]


def test_choices_bounds_and_defaults_are_those_of_the_types() -> None:
    properties = CONFIG["properties"]
    assert properties["loss_type"]["enum"] == ["l2", "huber", "smooth_l1"]
    assert properties["loss_type"]["default"] == "l2"
    assert properties["validation_resolution"]["default"] == "1024x1024"
    assert properties["scheduled_sampling_max_step_offset"]["maximum"] == 999
    assert CONFIG["required"] == ["model_flavour"]
    assert DATA["items"]["required"] == ["id"]


def test_simpletuners_keys_are_marked_as_such_and_not_offered() -> None:
    (pattern, node) = next(iter(CONFIG["patternProperties"].items()))
    assert node["deprecated"]
    assert not known_elsewhere(Settings) & CONFIG["properties"].keys()
    assert (
        wrongs(dict.fromkeys(known_elsewhere(Settings), 1) | {"model_flavour": "edit-v1"}, CONFIG)
        == []
    )
    assert "(" not in pattern[2:-2]


def test_a_schema_is_plain_json() -> None:
    for schema in (CONFIG, DATA):
        assert json.loads(json.dumps(schema, allow_nan=False)) == schema
        assert schema["$schema"].endswith("/draft/2020-12/schema")
