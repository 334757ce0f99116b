"""Settings that may change between two starts of a run, and those that make it another run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from training import SAMPLES, train

from qedit.cache.errors import AnotherRecipe
from qedit.cache.files.sealed import unsealed
from qedit.config.settings import Settings
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state import run_record


def patterns_for(key: str, patterns: Iterable[str]) -> list[str]:
    return [pattern for pattern in patterns if fnmatchcase(key, pattern)]


# what decides a run; all other settings are among `run_record.FREE`
DECISIVE = (
    "model_type",
    "model_family",
    "model_flavour",
    "model_kwargs",
    "seed",
    "train_batch_size",
    "gradient_accumulation_steps",
    "mixed_precision",
    "disable_tf32",
    "base_model_precision",
    "quantize_activations",
    "learning_rate",
    "optimizer",
    "optimizer_config",
    "lr_*",
    "max_grad_norm",
    "lora_type",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_init_type",
    "init_lora",
    "flow_*",
    "loss_type",
    "huber_c",
    "caption_dropout_probability",
    "conditioning_multidataset_sampling",
    "use_ema",
    "ema_decay",
    "ema_update_interval",
    "scheduled_sampling_*",
)


def test_every_setting_is_classed_once_and_nothing_else_is() -> None:
    """Whoever adds a setting must say whether a run may go on when it is changed."""
    every = list(Settings.model_fields)
    for key in every:
        assert len(patterns_for(key, (*run_record.FREE, *DECISIVE))) == 1, key
    for pattern in (*run_record.FREE, *DECISIVE):
        assert any(fnmatchcase(key, pattern) for key in every), pattern


def first_cells(table: str) -> list[str]:
    return re.findall(r"(?m)^\|([^|]*)\|", table)


def test_the_docs_class_every_setting_as_the_code_does() -> None:
    text = (ROOT / "docs/resume.md").read_text(encoding="utf-8")
    _, free, decisive = re.split(
        r"(?m)^\| may (?:not )?change", text.partition("## Changed pairs")[0]
    )
    named = [
        re.findall(r"`([a-z0-9_*]+)`", " ".join(first_cells(part))) for part in (free, decisive)
    ]
    for key in Settings.model_fields:
        said = [bool(patterns_for(key, patterns)) for patterns in named]
        assert said == [not run_record.decides(key), run_record.decides(key)], key


# One other value for each setting that is free; those that are paths have tests of their own.
OTHERS: dict[str, Any] = {
    "max_train_steps": 3,
    "checkpoint_step_interval": 7,
    "checkpoints_total_limit": 9,
    "validation_disable": True,
    "validation_resolution": "512",
    "validation_guidance": 2.0,
    "validation_num_inference_steps": 3,
    "validation_step_interval": 9,
    "validation_seed": 9,
    "validation_negative_prompt": "keep it",
    "num_eval_images": 1,
    "eval_steps_interval": 9,
    "keep_best": False,
    "lora_format": "comfyui",
    "tracker_project_name": "cats",
    "cache_compression": "zstd",
    "memory": 24,
    "blocks_to_stream": 1,
    "gradient_checkpointing": False,
    "quantize_via": "accelerator",
    "ema_device": "accelerator",
}


def test_what_is_free_is_no_part_of_what_decides_the_run(made: Any) -> None:
    assert not [key for key in OTHERS if run_record.decides(key)]
    run, other = (make_plan(made(SAMPLES, **settings)).run for settings in ({}, OTHERS))
    run_record.refuse_another_run(run, other, where=Path("here"))
    with pytest.raises(AnotherRecipe, match=r"huber_c: 0\.1 there, 0\.2 now"):
        run_record.refuse_another_run(run, make_plan(made(huber_c=0.2)).run, where=Path("here"))


def test_the_lora_that_a_run_began_with_may_move_change_or_be_gone(
    made: Any, tmp_path: Path
) -> None:
    first, second = made(output="first", max_train_steps=1), made(output="second")
    for configuration in (first, second):
        train(configuration)
    (one, moved) = (tmp_path / name for name in ("one.safetensors", "moved.safetensors"))
    shutil.copy(first.settings.output_dir / "pytorch_lora_weights.safetensors", one)

    def going_on(steps: int, start: Path) -> int:
        return train(made(output="on", max_train_steps=steps, init_lora=str(start))).kept

    assert going_on(1, one) == 0
    one.rename(moved)
    assert going_on(2, moved) == 1
    shutil.copy(second.settings.output_dir / "pytorch_lora_weights.safetensors", moved)
    assert going_on(3, moved) == 2
    moved.rename(one)  # and now the key names another LoRA than the run began with
    with pytest.raises(AnotherRecipe, match=r"init_lora: .*moved.safetensors there, .*one.saf"):
        going_on(4, one)
    assert going_on(4, moved) == 3, "which is gone"
    shutil.copy(first.settings.output_dir / "pytorch_lora_weights.safetensors", one)
    assert going_on(5, one) == 4
    one.rename(moved)
    assert going_on(5, moved) == 5, "there was nothing to do, and its name was noted"
    moved.unlink()
    assert going_on(6, moved) == 5


def test_a_run_goes_on_without_options_that_its_schedule_never_heard(made: Any) -> None:
    """Once they were taken with any schedule."""
    output = Path(train(made(output="on", max_train_steps=1)).where).parent
    for name in ("run.json", "checkpoint-1/state.json"):
        said = unsealed(json.loads((output / name).read_text()))
        settings = said.get("run", said)["settings"]
        assert settings["lr_scheduler_config"] is None
        settings["lr_scheduler_config"] = {"num_cycles": 2}
        (output / name).write_text(json.dumps(said))
    assert train(made(output="on", max_train_steps=2)).kept == 1
