"""Every key says what it means: its meaning, its values and unit, its default and why."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from qedit.config.datasets import CaptionShuffle, CaptionTable, Dataset
from qedit.config.key_table import FILES, Key, every_key
from qedit.config.remarks import known_elsewhere
from qedit.config.settings import ModelKwargs, Settings

KEYS = {key.name: key for key in every_key()}
NAMED = [pytest.param(key, id=f"{key.file}:{key.name}") for key in every_key()]
# numbers that count or measure nothing
PURE_NUMBERS = {
    *("seed", "validation_seed", "caption_shuffle.seed", "lora_rank", "lora_alpha"),
    *("learning_rate", "max_grad_norm", "huber_c", "validation_guidance"),
    *("flow_schedule_shift", "flow_sigmoid_scale", "scheduled_sampling_order"),
    *(f"flow_beta_schedule_{name}" for name in ("alpha", "beta")),
    *(f"scheduled_sampling_reflexflow_{name}" for name in ("alpha", "beta1", "beta2")),
}
# names of files, folders and arguments that are no keys
OTHER_NAMES = {"true_cfg_scale", "weight_decay", "num_cycles", "lr_end", "step_rules"}


@pytest.mark.parametrize("key", NAMED)
def test_a_key_has_a_meaning_and_a_reason_in_sentences(key: Key) -> None:
    for text in (key.meaning, key.why):
        assert re.fullmatch(r"\S.*[^.]\.", text), text
        assert not re.search(r"\b(Unit|Why):|  ", text), text
    assert key.meaning[0].isupper()
    assert key.meaning != key.why
    assert key.change
    assert "None" not in key.values


@pytest.mark.parametrize("key", NAMED)
def test_a_number_has_a_unit_unless_it_is_a_share_or_measures_nothing(key: Key) -> None:
    is_number = bool(re.search(r"\bnumber\b", key.values))
    is_share = " to 1" in key.values or " to below 1" in key.values
    has_unit = key.values.endswith(")")
    assert has_unit == (is_number and not is_share and key.name not in PURE_NUMBERS), key.values


@pytest.mark.parametrize("key", NAMED)
def test_a_text_names_keys_that_exist(key: Key) -> None:
    names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", f"{key.meaning} {key.why}"))
    values = {word for each in KEYS.values() for word in each.values.split(", ")}
    assert names <= KEYS.keys() | values | OTHER_NAMES | {"cosine_with_restarts"}


def test_every_field_of_both_files_is_in_the_table_once() -> None:
    for file, model in FILES.items():
        names = [key.name for key in every_key() if key.file == file]
        assert len(set(names)) == len(names)
        assert [name for name in names if "." not in name] == list(model.model_fields)
    for top, inner in (
        ("model_kwargs", ModelKwargs),
        ("caption_shuffle", CaptionShuffle),
        ("parquet", CaptionTable),
    ):
        inside = {name.partition(".")[2] for name in KEYS if name.startswith(f"{top}.")}
        assert inside == set(inner.model_fields)


def test_groups_are_subjects_in_the_order_of_the_page() -> None:
    groups = {
        file: list(dict.fromkeys(k.group for k in every_key() if k.file == file)) for file in FILES
    }
    assert groups == {
        "config.json": [
            *("Model", "Data", "Encoding", "Training", "Memory", "LoRA", "Noise schedule"),
            *("Previews", "Evaluation", "Output"),
        ],
        "multidatabackend.json": [
            *("Source", "References and masks", "Captions", "Sizes", "Mixture", "Folders"),
        ],
    }


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lora_rank", "whole number from 1"),
        ("learning_rate", "number above 0"),
        ("ema_decay", "number from 0 to below 1"),
        ("caption_dropout_probability", "number from 0 to 1"),
        ("scheduled_sampling_order", "whole number from 1 to 3"),
        ("seed", "whole number from 0"),
        ("max_train_steps", "whole number from 0 (0 is none) or null (optimizer steps)"),
        ("memory", "auto or whole number from 1 (GB, 10^9 bytes)"),
        ("blocks_to_stream", "auto or whole number from 0 (blocks)"),
        ("use_ema", "true or false"),
        ("loss_type", "l2, huber, smooth_l1"),
        ("report_to", "none, tensorboard, wandb or null"),
        ("output_dir", "path"),
        ("data_backend_config", "path or null"),
        ("revision", "text or null"),
        ("model_kwargs", "object of match_target_res"),
        ("optimizer_config", "object or null"),
        ("conditioning_data", "text or list of text"),
        ("crop_aspect_buckets", "list of number above 0 (width / height)"),
        (
            "validation_resolution",
            "text (like 1024x768!) or whole number from 1 (pixels)",
        ),
        (
            "lora_target_modules",
            "attention, joint-attention, attention+mlp, all-linear, all-linear+modulation "
            "or list of text",
        ),
    ],
)
def test_values_are_said_by_the_type(name: str, values: str) -> None:
    assert KEYS[name].values == values


def test_defaults_are_those_of_the_files() -> None:
    given: dict[type, dict[str, Any]] = {
        Settings: {"model_flavour": "edit-v2"},
        Dataset: {"id": "edited"},
    }
    for file, model in FILES.items():
        made = model.model_validate(given[model]).model_dump(mode="json")
        for key in every_key():
            if key.file != file or "." in key.name:
                continue
            if key.name in given[model]:
                assert key.default is None
            else:
                assert json.loads(key.default or "") == made[key.name], key.name
    assert KEYS["parquet.path"].default is None
    assert KEYS["caption_shuffle.split_on"].default == '"comma"'
    assert KEYS["resolution"].default == "1024"


def test_a_default_names_the_key_that_it_follows() -> None:
    assert {name: key.follows for name, key in KEYS.items() if key.follows} == {
        "max_train_steps": ("num_train_epochs",),
        "lora_alpha": ("lora_rank",),
        "flow_schedule_auto_shift": ("flow_schedule_shift",),
        "use_ema": ("model_type",),
        "eval_steps_interval": ("validation_step_interval",),
    }


def test_no_key_is_one_that_has_no_effect() -> None:
    for file, model in FILES.items():
        assert not known_elsewhere(model) & {key.name for key in every_key() if key.file == file}
