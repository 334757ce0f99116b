"""Values that a key refuses, and the message of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from configurations import complaint, configured, image, only_line, reference


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lora_rnk": 4}, "`lora_rnk` is not a known key; did you mean `lora_rank`?"),
        ({"--lora-rank": 4}, "`--lora-rank` is not a known key; did you mean `lora_rank`?"),
        ({"xyzzy": 4}, "`xyzzy` is not a known key"),
        (
            {"validation_promt": "a cat"},
            "`validation_promt` is not a known key; "
            "did you mean `validation_prompt`, which has no effect here?",
        ),
        (
            {"model_kwargs": {"match_target": True}},
            "`model_kwargs.match_target` is not a known key; did you mean `match_target_res`?",
        ),
        ({"lora_rank": 0}, "`lora_rank` must be at least 1, not 0"),
        ({"lora_rank": "many"}, '`lora_rank` must be a whole number, not "many"'),
        ({"lora_rank": 1.5}, "`lora_rank` must be a whole number, not 1.5"),
        ({"lora_rank": True}, "`lora_rank` must be a number, not true"),
        ({"learning_rate": 0}, "`learning_rate` must be more than 0, not 0"),
        ({"learning_rate": "inf"}, '`learning_rate` must be a finite number, not "inf"'),
        ({"learning_rate": [1]}, "`learning_rate` must be a number, not [1]"),
        ({"ema_decay": 1}, "`ema_decay` must be less than 1, not 1"),
        (
            {"caption_dropout_probability": 1.1},
            "`caption_dropout_probability` must be at most 1, not 1.1",
        ),
        ({"quantize_activations": 3}, "`quantize_activations` must be true or false, not 3"),
        ({"tracker_project_name": [1]}, "`tracker_project_name` must be a text, not [1]"),
        (
            {"revision": ""},
            '`revision` must be a text with at least one character, not ""',
        ),
        ({"model_kwargs": 3}, "`model_kwargs` must be an object in braces, not 3"),
        (
            {"mixed_precision": "fp16"},
            '`mixed_precision` must be one of no, bf16, not "fp16"; did you mean `bf16`?',
        ),
        (
            {"model_family": "flux"},
            "`model_family` must be \"qwen_image\", not 'flux': qedit trains Qwen-Image-Edit alone",
        ),
        (
            {"lora_target_modules": "attn"},
            "`lora_target_modules` must be a list of names or one of attention, joint-attention, "
            'attention+mlp, all-linear, all-linear+modulation, not "attn"; '
            "did you mean `attention`?",
        ),
        ({"lora_target_modules": []}, "`lora_target_modules` must not be an empty list"),
        ({"memory": "lots"}, "`memory` must be \"auto\" or a whole number, not 'lots'"),
        ({"output_dir": ""}, "`output_dir` must not be empty"),
        ({"cache_dir": 3}, "`cache_dir` must be a path in quotes"),
        (
            {"validation_resolution": "1001x768!"},
            "`validation_resolution` with `!` both sides must be multiples of 16",
        ),
        (
            {"validation_resolution": "16x768"},
            "`validation_resolution` must be at least 32 pixels on each side, not '16x768'",
        ),
        (
            {"validation_resolution": "large"},
            '`validation_resolution` must be like "1024x1024", "1024" or "1024x768!" '
            "(exactly so), not 'large'",
        ),
        (
            {"max_train_steps": 10, "num_train_epochs": 1},
            "`max_train_steps` and `num_train_epochs` are both given; keep one of the two",
        ),
        (
            {"max_train_steps": 0},
            "`max_train_steps` is 0 and `num_train_epochs` is not given; give one of the two",
        ),
        (
            {"flow_use_uniform_schedule": True, "flow_use_beta_schedule": True},
            "`flow_use_beta_schedule` and `flow_use_uniform_schedule` are both on; keep one",
        ),
        (
            {"model_flavour": "edit-v1", "model_kwargs": {"match_target_res": True}},
            "`model_kwargs.match_target_res` is for edit-v2 and later, not for edit-v1",
        ),
        (
            {"model_flavour": "edit-v4"},
            "`model_flavour` must be one of edit-v1, edit-v2, edit-v2+, edit-v3, "
            'not "edit-v4"; did you mean `edit-v3`?',
        ),
        (
            {"lora_type": "lokr", "lora_init_type": "gaussian"},
            '`lora_init_type` is "gaussian", a start of a LoRA, and `lora_type` "lokr" has one of '
            "its own; take it out, or set `lora_type` to lora",
        ),
        (
            {"lora_type": "lokr", "lora_dropout": 0.1},
            '`lora_dropout` drops inputs of a LoRA, which `lora_type` "lokr" does not have; '
            "set it to 0, or `lora_type` to lora",
        ),
        (
            {"lora_type": "dora", "base_model_precision": "int8-quanto"},
            '`lora_type` is "dora", which needs the base\'s weights themselves, and '
            "`base_model_precision` quantises them; set that to no_change, or this to lora",
        ),
        (
            {"lora_init_type": "pissa", "base_model_precision": "nf4-bnb"},
            '`lora_init_type` is "pissa", which needs the base\'s weights themselves, and '
            "`base_model_precision` quantises them; set that to no_change, or this to default",
        ),
        (
            {"init_lora": "a.safetensors", "lora_type": "dora"},
            '`init_lora` begins with the LoRA of a file, and `lora_type` is "dora"; '
            "take one of them out",
        ),
        (
            {"init_lora": "a.safetensors", "lora_init_type": "olora"},
            '`init_lora` begins with the LoRA of a file, and `lora_init_type` is "olora"; '
            "take one of them out",
        ),
        (
            {"model_type": "full", "init_lora": "a.safetensors"},
            '`init_lora` is "a.safetensors", and `model_type` "full" trains the model\'s own '
            "weights; take it out, or set `model_type` to lora",
        ),
        (
            {"model_type": "full", "base_model_precision": "int8-quanto"},
            '`base_model_precision` is "int8-quanto", and `model_type` "full" trains the model\'s '
            "own weights; take it out, or set `model_type` to lora",
        ),
        (
            {"optimizer": "muon", "lora_type": "dora"},
            '`optimizer` is "muon", which changes matrices alone, and `lora_type` "dora" trains '
            "a norm for each output too; choose another of the two",
        ),
        (
            {"optimizer": "muon", "model_type": "full"},
            '`optimizer` is "muon", which changes matrices alone, and `model_type` "full" trains '
            "biases and norms too; choose another of the two",
        ),
        (
            {"optimizer_config": {"lr": 1}},
            "`optimizer_config.lr` has a key of its own; use `learning_rate`",
        ),
        # what follows from a wrong value is not said
        (
            {"lr_scheduler": "polynomail", "lr_scheduler_config": {"power": 2}},
            "`lr_scheduler` must be one of constant, constant_with_warmup, linear, cosine, "
            "cosine_with_restarts, polynomial, piecewise_constant, "
            'not "polynomail"; did you mean `polynomial`?',
        ),
    ],
)
def test_a_mistake_in_the_settings(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    assert only_line(complaint(tmp_path, settings)) == f"config.json: {line}"


def test_a_start_that_a_lokr_does_not_have_is_said_once(tmp_path: Path) -> None:
    lokr = {"lora_type": "lokr", "lora_init_type": "pissa", "base_model_precision": "int8-quanto"}
    said = complaint(tmp_path, lokr)
    assert said.count("`lora_init_type` is") == 1
    assert '`lora_type` "lokr" has one of its own' in said


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        (
            "cosine",
            {"num_cycles": 3},
            "num_cycles` is not an option of `lr_scheduler` cosine, which takes none; "
            "cosine_with_restarts takes it",
        ),
        (
            "linear",
            {"power": 2},
            "power` is not an option of `lr_scheduler` linear, which takes none; "
            "polynomial takes it",
        ),
        (
            "polynomial",
            {"step_rules": "1:4,0.5"},
            "step_rules` is not an option of `lr_scheduler` polynomial, which takes power and "
            "lr_end; piecewise_constant takes it",
        ),
        (
            "polynomial",
            {"powr": 2},
            "powr` is not an option of `lr_scheduler` polynomial, which takes power and lr_end; "
            "did you mean `power`?",
        ),
        ("polynomial", {"power": "2"}, "power` must be a number, not '2'"),
        ("polynomial", {"power": 0}, "power` must be more than 0, not 0"),
        ("polynomial", {"lr_end": 1e-4}, "lr_end` must be from 0 to less than 0.0001, not 0.0001"),
        (
            "piecewise_constant",
            {},
            'step_rules` is required with `lr_scheduler` piecewise_constant, like "1:100,0.1"',
        ),
        (
            "piecewise_constant",
            {"step_rules": "1:4"},
            'step_rules` must be like "1:100,0.1" (factor:until this step, ..., factor), '
            "not '1:4'",
        ),
    ],
)
def test_a_mistake_in_the_options_of_a_schedule(
    tmp_path: Path, name: str, config: dict[str, Any], line: str
) -> None:
    said = complaint(tmp_path, {"lr_scheduler": name, "lr_scheduler_config": config})
    assert only_line(said) == f"config.json: `lr_scheduler_config.{line}"


def test_the_end_of_a_polynomial_lies_below_its_beginning(tmp_path: Path) -> None:
    low = {"lr_scheduler": "polynomial", "learning_rate": 1e-7}
    assert "`lr_scheduler_config.lr_end` is 1e-07 where" in complaint(tmp_path, low)
    configured(tmp_path, {**low, "lr_scheduler_config": {"lr_end": 0}})


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"resolutoin": 1}, "`resolutoin` is not a known key; did you mean `resolution`?"),
        (
            {"type": "aws"},
            "`type` must be \"local\", not 'aws': other storage is not supported; "
            "copy the pictures to a local folder",
        ),
        (
            {"dataset_type": "video"},
            "`dataset_type` must be one of image, conditioning, conditioning_image_embeds, "
            'text_embeds, eval, not "video"',
        ),
        (
            {"instance_data_dir": None},
            "`instance_data_dir` is required for a dataset of type image",
        ),
        ({"instance_data_dir": 3}, "`instance_data_dir` must be a path in quotes"),
        (
            {"conditioning_data": []},
            "`conditioning_data` is required: the id, or a list of ids, "
            "of the datasets that hold its references",
        ),
        (
            {"conditioning_data": "reff"},
            '`conditioning_data` names "reff", and there is no dataset of that id; '
            "did you mean `ref`?",
        ),
        (
            {"conditioning_data": "main"},
            '`conditioning_data` names "main", which has `dataset_type` "image", '
            'not "conditioning"',
        ),
        ({"conditioning_data": ["ref", "ref"]}, '`conditioning_data` names "ref" more than once'),
        (
            {"conditioning_data": "mask"},
            "`conditioning_data` names a mask alone; at least one reference is needed",
        ),
        (
            {"conditioning_data": ["ref", "mask", "mask2"]},
            "`conditioning_data` names 2 mask datasets; one is possible",
        ),
        ({"conditioning_data": "off"}, '`conditioning_data` names "off", which is disabled'),
        ({"conditioning_data": [1]}, "`conditioning_data` must be a text or a list of texts"),
        (
            {"conditioning_image_embeds": "nothing"},
            '`conditioning_image_embeds` names "nothing", and there is no dataset of that id',
        ),
        (
            {"conditioning_image_embeds": "ref"},
            '`conditioning_image_embeds` names "ref", which has `dataset_type` "conditioning", '
            'not "conditioning_image_embeds"',
        ),
        (
            {"caption_strategy": None},
            "`caption_strategy` may be null for a conditioning dataset alone",
        ),
        (
            {"caption_strategy": "csv"},
            '`csv` is required with `caption_strategy` "csv", '
            'like {"path": "captions.csv", "caption_column": "caption"}',
        ),
        (
            {"caption_strategy": "instanceprompt"},
            '`instance_prompt` is required with `caption_strategy` "instanceprompt"',
        ),
        (
            {"prepend_instance_prompt": True},
            "`instance_prompt` is required with `prepend_instance_prompt`",
        ),
        (
            {"caption_shuffle": {"cuont": 2}},
            "`caption_shuffle.cuont` is not a known key; did you mean `count`?",
        ),
        ({"parquet": {}}, "`parquet.path` is required"),
        (
            {"resolution": 1.0},
            "`resolution` is an edge in pixels, at least 32, not 1; "
            'for megapixels set `resolution_type` to "area"',
        ),
        (
            {"resolution_type": "area"},
            '`resolution` is in megapixels with `resolution_type` "area": '
            "1.0 is 1024x1024, 1024 too much",
        ),
        (
            {"maximum_image_size": 2048},
            "`target_downsample_size` and `maximum_image_size` must be given together",
        ),
        (
            {"maximum_image_size": 512, "target_downsample_size": 1024},
            "`target_downsample_size` must not be more than `maximum_image_size`",
        ),
        (
            {"minimum_aspect_ratio": 9},
            "`minimum_aspect_ratio` must not be more than `maximum_aspect_ratio`",
        ),
        (
            {"crop": True, "crop_aspect": "closest"},
            '`crop_aspect_buckets` is required with `crop_aspect` "closest", like [0.75, 1, 1.5]',
        ),
        ({"crop_aspect_buckets": [1, "x"]}, '`crop_aspect_buckets.1` must be a number, not "x"'),
        ({"probability": -0.1}, "`probability` must be at least 0, not -0.1"),
        ({"start_step": 5, "end_step": 5}, "`end_step` must be later than `start_step` (5)"),
    ],
)
def test_a_mistake_in_a_dataset(tmp_path: Path, fields: dict[str, Any], line: str) -> None:
    masks = [reference(id=name, conditioning_type="mask") for name in ("mask", "mask2")]
    others = [reference(), *masks, reference(id="off", disabled=True)]
    what = complaint(tmp_path, {}, image(**fields), *others)
    assert only_line(what) == f"data.json, dataset main: {line}"
