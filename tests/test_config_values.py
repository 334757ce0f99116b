"""What may not be written for a key, and the line that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_configuration import complaint, image, only_line, reference


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
    ],
)
def test_a_mistake_in_the_settings(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    assert only_line(complaint(tmp_path, settings)) == f"config.json: {line}"


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
