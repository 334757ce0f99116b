"""A training run: what it writes, and what a finished one leaves alone."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from safetensors import safe_open
from training import SAMPLES, checkpoint_names, lora, metrics, train

from qedit.cache.errors import AnotherRecipe, WrongUse
from qedit.stages.train.data.batches import Order, Source
from qedit.stages.train.plan import training_plan


def test_a_run_leaves_checkpoints_lora_files_and_a_line_a_step(made: Any) -> None:
    configuration = made(max_train_steps=5, checkpoints_total_limit=2)
    outcome = train(configuration)
    assert (outcome.wanted, outcome.kept, outcome.computed) == (5, 0, 5)
    assert checkpoint_names(configuration) == ["checkpoint-4", "checkpoint-5"]
    lines = metrics(configuration)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert set(lines[0]) == {
        *("step", "loss", "lr", "grad_norm", "sigma", "samples", "loss_by_sigma"),
        *("seconds", "data_wait_seconds", "padding", "memory_bytes"),
    }
    assert lines[-1]["loss"] == outcome.facts["loss"]
    file = configuration.settings.output_dir / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["steps"] == "5"
    assert metadata["flavour"] == "edit-v2"
    assert {"base_digest", "zero_cond_t", "targets", "rank", "trained_scale", "qedit"} <= set(
        metadata
    )
    assert any(
        not torch.equal(weight, lora(configuration, "ema")[name])
        for name, weight in lora(configuration).items()
    )


def test_a_finished_run_has_nothing_to_do_and_writes_nothing(made: Any) -> None:
    configuration = made()
    train(configuration)
    where = configuration.settings.output_dir
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*safetensors")}
    outcome = train(configuration)
    assert (outcome.wanted, outcome.kept, outcome.computed) == (6, 6, 0)
    assert {path: path.stat().st_mtime_ns for path in where.rglob("*safetensors")} == before


@pytest.mark.parametrize(
    "name", ["pytorch_lora_weights.safetensors", "checkpoint-6/pytorch_lora_weights.safetensors"]
)
def test_what_another_trainer_left_is_never_touched(made: Any, name: str) -> None:
    configuration = made()
    theirs = configuration.settings.output_dir / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"hours of somebody's evening")
    with pytest.raises(AnotherRecipe, match="another trainer"):
        train(configuration)
    assert theirs.read_bytes() == b"hours of somebody's evening"


def test_a_file_of_the_same_step_of_another_run_is_replaced(made: Any) -> None:
    configuration = made()
    train(configuration)
    file = configuration.settings.output_dir / "pytorch_lora_weights.safetensors"
    first = file.read_bytes()
    shutil.rmtree(configuration.settings.output_dir)
    train(made(seed=7))
    other = file.read_bytes()
    assert other != first
    file.write_bytes(first)  # the same number of steps, but not this run's weights
    train(made(seed=7))
    assert file.read_bytes() == other


def test_a_dry_run_touches_nothing(made: Any) -> None:
    configuration = made()
    outcome = train(configuration, dry_run=True)
    assert (outcome.wanted, outcome.kept, outcome.computed) == (6, 0, 0)
    assert not configuration.settings.output_dir.exists()


@pytest.mark.parametrize(
    ("style", "prefix"), [("comfyui", "diffusion_model."), ("kohya", "lora_unet_")]
)
def test_the_lora_is_published_in_the_style_asked_for(made: Any, style: str, prefix: str) -> None:
    train(made(max_train_steps=1))
    configuration = made(max_train_steps=1, lora_format=style)
    assert train(configuration).kept == 1  # a finished run gives its files in another style
    for folder in ("", "ema"):
        assert {name.startswith(prefix) for name in lora(configuration, folder)} == {True}


def test_a_lora_file_that_is_gone_or_old_is_made_again_from_the_checkpoint(made: Any) -> None:
    configuration = made()
    train(configuration)
    file = configuration.settings.output_dir / "pytorch_lora_weights.safetensors"
    data = file.read_bytes()
    file.unlink()
    train(configuration)
    assert file.read_bytes() == data


def test_epochs_give_the_number_of_steps(made: Any) -> None:
    # two shapes of four samples each in batches of two
    configuration = made(num_train_epochs=3)
    assert train(configuration, dry_run=True).wanted == 12


def test_a_mix_that_runs_out_is_refused_before_the_first_step(made: Any) -> None:
    configuration = made(data={"end_step": 4})
    with pytest.raises(WrongUse, match=r"step 5: edits has 8 pairs from step 1 to 4\.") as refused:
        train(configuration, dry_run=True)
    assert "`max_train_steps` 4" in refused.value.do
    assert not configuration.settings.output_dir.exists()


def test_a_dataset_that_ends_before_its_epochs_is_told(made: Any) -> None:
    settings = made(num_train_epochs=3).settings
    sources = [Source("early", SAMPLES[:2], end_step=4), Source("always", SAMPLES[2:4])]
    order = Order(sources, 42, batch_size=1, accumulation=1)
    (line,) = training_plan._cut_off(settings, order, sources)
    assert line.startswith("Dataset early ends at step 4 (`end_step`), after 1 of the 3 passes")
    assert not list(training_plan._cut_off(made(num_train_epochs=1).settings, order, sources))
    assert not list(training_plan._cut_off(made(max_train_steps=9).settings, order, sources))


@pytest.mark.parametrize("flavour", ["edit-v1", "edit-v3", "edit-v2+"])
def test_every_flavour_trains_in_bfloat16_too(made: Any, flavour: str) -> None:
    configuration = made(flavour=flavour, mixed_precision="bf16", max_train_steps=2)
    train(configuration)
    assert all(math.isfinite(line["loss"]) for line in metrics(configuration))
    assert all(weight.dtype == torch.float32 for weight in lora(configuration).values())


def test_the_learning_rate_follows_its_schedule_and_gradients_are_clipped(made: Any) -> None:
    configuration = made(lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6)
    train(configuration)
    rates = [line["lr"] for line in metrics(configuration)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_clipping_bounds_the_norm_of_what_the_optimizer_gets(made: Any) -> None:
    """One step of SGD-like size: with AdamW only the ratio eps/gradient shows the clipping."""
    config = {"eps": 1.0, "weight_decay": 0.0}
    moved = {}
    for limit in (0.0, 1e-3):
        configuration = made(
            max_grad_norm=limit,
            optimizer_config=config,
            max_train_steps=1,
            output=f"out-{limit}",
        )
        train(configuration)
        norm = metrics(configuration)[0]["grad_norm"]
        moved[limit] = lora(configuration)
    fresh = {
        name: torch.zeros_like(weight) for name, weight in moved[0.0].items() if "lora_B" in name
    }
    free = max(float(moved[0.0][name].abs().max()) for name in fresh)
    clipped = max(float(moved[1e-3][name].abs().max()) for name in fresh)
    assert norm > 1e-2
    assert clipped < 0.2 * free
