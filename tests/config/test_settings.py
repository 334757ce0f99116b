"""Every key of the two files exists and has the default that is promised for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qedit.config.datasets import Dataset
from qedit.config.settings import MAX_REFERENCES, Settings
from qedit.config.training_settings import LORA_PRESETS
from qedit.config.value_types import PreviewSize
from qedit.stages.models.flavours import FLAVOURS

SETTINGS: dict[str, Any] = {
    "model_type": "lora",
    "model_family": "qwen_image",
    "pretrained_model_name_or_path": None,
    "revision": None,
    "pretrained_transformer_model_name_or_path": None,
    "pretrained_vae_model_name_or_path": None,
    "pretrained_text_encoder_model_name_or_path": None,
    "output_dir": Path("output"),
    "cache_dir": Path("cache"),
    "data_backend_config": None,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 3000,
    "num_train_epochs": None,
    "mixed_precision": "bf16",
    "disable_tf32": True,
    "base_model_precision": "no_change",
    "quantize_via": "cpu",
    "quantize_activations": False,
    "gradient_checkpointing": True,
    "learning_rate": 1e-4,
    "optimizer": "adamw",
    "optimizer_config": None,
    "lr_scheduler": "constant",
    "lr_scheduler_config": None,
    "lr_warmup_steps": 0,
    "max_grad_norm": 1.0,
    "vae_dtype": "fp32",
    "text_encoder_dtype": "bf16",
    "text_encoder_precision": "no_change",
    "cache_compression": "none",
    "memory": "auto",
    "blocks_to_stream": "auto",
    "compile_blocks": False,
    "keep_best": True,
    "lora_rank": 16,
    "lora_alpha": 16.0,
    "lora_dropout": 0.0,
    "lora_target_modules": "attention",
    "init_lora": None,
    "lora_init_type": "default",
    "lora_type": "lora",
    "flow_schedule_shift": None,
    "flow_schedule_auto_shift": True,
    "flow_sigmoid_scale": 1.0,
    "flow_use_uniform_schedule": False,
    "flow_use_beta_schedule": False,
    "flow_beta_schedule_alpha": 2.0,
    "flow_beta_schedule_beta": 2.0,
    "loss_type": "l2",
    "huber_c": 0.1,
    "use_ema": True,
    "ema_decay": 0.995,
    "ema_device": "cpu",
    "ema_update_interval": 1,
    "caption_dropout_probability": 0.0,
    "conditioning_multidataset_sampling": "combined",
    "validation_resolution": PreviewSize(1024, 1024),
    "validation_guidance": 4.0,
    "validation_num_inference_steps": 30,
    "validation_step_interval": 500,
    "validation_seed": 42,
    "validation_negative_prompt": " ",
    "num_eval_images": 4,
    "eval_dataset_id": None,
    "eval_steps_interval": 500,
    "validation_disable": False,
    "checkpoint_step_interval": 500,
    "checkpoints_total_limit": 5,
    "resume_from_checkpoint": "latest",
    "on_changed_data": "refuse",
    "scheduled_sampling_max_step_offset": 0,
    "scheduled_sampling_strategy": "uniform",
    "scheduled_sampling_probability": 0.0,
    "scheduled_sampling_prob_start": 0.0,
    "scheduled_sampling_prob_end": 0.5,
    "scheduled_sampling_ramp_steps": 0,
    "scheduled_sampling_start_step": 0,
    "scheduled_sampling_ramp_shape": "linear",
    "scheduled_sampling_sampler": "unipc",
    "scheduled_sampling_order": 2,
    "scheduled_sampling_reflexflow": False,
    "scheduled_sampling_reflexflow_alpha": 1.0,
    "scheduled_sampling_reflexflow_beta1": 10.0,
    "scheduled_sampling_reflexflow_beta2": 1.0,
    "seed": 42,
    "report_to": "none",
    "tracker_project_name": "qedit",
    "lora_format": "diffusers",
}

DATASET: dict[str, Any] = {
    "type": "local",
    "dataset_type": "image",
    "disabled": False,
    "instance_data_dir": None,
    "conditioning_data": (),
    "conditioning_type": "reference_strict",
    "conditioning_image_embeds": None,
    "cache_dir_vae": None,
    "cache_dir": None,
    "caption_strategy": "filename",
    "missing_caption": "reject",
    "instance_prompt": (),
    "prepend_instance_prompt": False,
    "only_instance_prompt": False,
    "disable_multiline_split": False,
    "caption_filter_list": (),
    "parquet": None,
    "csv": None,
    "jsonl": None,
    "resolution": 1024.0,
    "resolution_type": "pixel_area",
    "crop": False,
    "crop_aspect": "square",
    "crop_style": "center",
    "minimum_image_size": None,
    "maximum_image_size": None,
    "target_downsample_size": None,
    "crop_aspect_buckets": (),
    "minimum_aspect_ratio": 0.125,
    "maximum_aspect_ratio": 8.0,
    "strict_ratio_tolerance": 0.02,
    "repeats": 0,
    "probability": 1.0,
    "max_num_samples": None,
    "start_step": 0,
    "end_step": None,
}


@pytest.mark.parametrize(("key", "default"), SETTINGS.items())
def test_a_setting_has_its_default(key: str, default: Any) -> None:
    value = getattr(Settings(model_flavour="edit-v2"), key)
    assert value == default
    assert type(value) is type(default) or isinstance(default, Path)


@pytest.mark.parametrize(("key", "default"), DATASET.items())
def test_a_field_of_a_dataset_has_its_default(key: str, default: Any) -> None:
    assert getattr(Dataset(id="one"), key) == default


def test_no_key_is_left_out_of_these_tables() -> None:
    assert set(Settings.model_fields) == {*SETTINGS, "model_flavour", "model_kwargs"}
    assert set(Dataset.model_fields) == {*DATASET, "id", "caption_shuffle"}


def test_the_objects_inside_have_their_defaults() -> None:
    settings, dataset = Settings(model_flavour="edit-v2"), Dataset(id="one")
    assert settings.model_kwargs.model_dump() == {"match_target_res": False}
    assert dataset.caption_shuffle.enable is False
    table = Dataset.model_validate({"id": "one", "csv": {"path": "a.csv"}}).csv
    assert table is not None
    assert table.model_dump() == {
        "path": Path("a.csv"),
        "filename_column": "filename",
        "caption_column": ("caption",),
        "fallback_caption_column": None,
        "identifier_includes_extension": True,
    }


@pytest.mark.parametrize(
    ("given", "key", "follows"),
    [
        ({"lora_rank": 4}, "lora_alpha", 4.0),
        ({"lora_rank": 4, "lora_alpha": 1}, "lora_alpha", 1.0),
        ({"flow_schedule_shift": 1.73}, "flow_schedule_auto_shift", False),
        (
            {"flow_schedule_shift": 3, "flow_schedule_auto_shift": True},
            "flow_schedule_auto_shift",
            True,
        ),
        ({"num_train_epochs": 2}, "max_train_steps", None),
        ({"num_train_epochs": 0}, "max_train_steps", 3000),
        ({"model_type": "full"}, "use_ema", False),
        ({"model_type": "full", "use_ema": True}, "use_ema", True),
        ({"validation_step_interval": 50}, "eval_steps_interval", 50),
    ],
)
def test_a_default_follows_from_another_key(given: dict[str, Any], key: str, follows: Any) -> None:
    assert getattr(Settings(model_flavour="edit-v1", **given), key) == follows


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"validation_guidance": "4.0"}, "validation_guidance", 4.0),
        ({"learning_rate": "1e-4"}, "learning_rate", 1e-4),
        ({"lora_rank": "8"}, "lora_rank", 8),
        ({"gradient_checkpointing": "false"}, "gradient_checkpointing", False),
        ({"report_to": None}, "report_to", "none"),
        ({"lora_target_modules": ["to_q", "to_k"]}, "lora_target_modules", ("to_q", "to_k")),
        ({"blocks_to_stream": "12"}, "blocks_to_stream", 12),
        ({"tracker_project_name": 2024}, "tracker_project_name", "2024"),
    ],
)
def test_values_are_read_kindly(given: dict[str, Any], key: str, value: Any) -> None:
    assert getattr(Settings(model_flavour="edit-v1", **given), key) == value


@pytest.mark.parametrize("preset", LORA_PRESETS)
def test_every_lora_preset_is_accepted(preset: str) -> None:
    assert (
        Settings(model_flavour="edit-v1", lora_target_modules=preset).lora_target_modules == preset
    )


def test_one_reference_dataset_may_stand_without_brackets() -> None:
    assert Dataset(id="one", conditioning_data="two").conditioning_data == ("two",)


@pytest.mark.parametrize(
    ("text", "size", "area"),
    [
        ("768x512", PreviewSize(768, 512), 768 * 512),
        ("768", PreviewSize(768, 768), 768 * 768),
        (768, PreviewSize(768, 768), 768 * 768),
        ("1024X768!", PreviewSize(1024, 768, exact=True), 1024 * 768),
    ],
)
def test_a_preview_size_is_read(text: object, size: PreviewSize, area: int) -> None:
    read = Settings(model_flavour="edit-v1", validation_resolution=text).validation_resolution
    assert (read, read.area) == (size, area)
    assert PreviewSize.parse(str(read)) == read


def test_settings_do_not_change() -> None:
    settings = Settings(model_flavour="edit-v1")
    with pytest.raises(ValidationError, match="frozen"):
        settings.lora_rank = 4


def test_flavours_are_those_of_the_models() -> None:
    assert {name: flavour.max_references for name, flavour in FLAVOURS.items()} == MAX_REFERENCES
