"""A training run: what it makes, what it goes on from, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_run import made_samples_with_edits
from paths import ROOT
from quiet import Quiet
from safetensors import safe_open
from samples import made_sample
from training import SAMPLES, checkpoint_names, lora, metrics, train

from qedit.cache.errors import AnotherRecipe, Damaged, Locked, NotComplete, QeditError, WrongUse
from qedit.cache.files.lock import writer_lock
from qedit.cache.files.sealed import unsealed
from qedit.config.settings import Settings
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.samples.sample import NULL_CAPTION
from qedit.stages.stores.run_stores import open_stores
from qedit.stages.train import loop
from qedit.stages.train.data import row_check
from qedit.stages.train.data.batches import Order, Source
from qedit.stages.train.data.feed import Batch, Feed
from qedit.stages.train.data.row_check import all_rows_are_there, samples_digest
from qedit.stages.train.plan import training_plan
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state import run_record
from qedit.stages.train.state.checkpoint import read_state
from qedit.stages.train.state.run_record import digest_of_samples


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


# -- what may change between two starts ----------------------------------------------------------


def patterns_for(key: str, patterns: Iterable[str]) -> list[str]:
    return [pattern for pattern in patterns if fnmatchcase(key, pattern)]


def test_every_setting_is_classed_once_and_nothing_else_is() -> None:
    """Whoever adds a setting must say whether a run may go on when it is changed."""
    every = list(Settings.model_fields)
    for key in every:
        assert len(patterns_for(key, (*run_record.FREE, *run_record.DECISIVE))) == 1, key
    for pattern in (*run_record.FREE, *run_record.DECISIVE):
        assert any(fnmatchcase(key, pattern) for key in every), pattern


def first_cells(table: str) -> list[str]:
    return re.findall(r"(?m)^\|([^|]*)\|", table)


def test_the_docs_class_every_setting_as_the_code_does() -> None:
    text = (ROOT / "docs/resume.md").read_text(encoding="utf-8")
    _, free, decisive = re.split(r"(?m)^\| may (?:not )?change", text)
    named = [re.findall(r"`([a-z_*]+)`", " ".join(first_cells(part))) for part in (free, decisive)]
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


# -- what is refused -------------------------------------------------------------------------


def test_missing_rows_are_counted_with_the_command_to_type(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(SAMPLES)
    monkeypatch.setattr("filled_run.fill_stores", lambda configuration, samples: None)
    configuration = made(made_samples_with_edits(10, sizes=[(64, 64), (64, 96)]))
    told = "2 of 10 samples have no latents for edit-v2 yet"
    with pytest.raises(NotComplete, match=told) as refused:
        train(configuration)
    assert refused.value.do == "Run `qedit cache-vae`, then `qedit train` again."
    assert not configuration.settings.output_dir.exists()


def test_dropout_needs_the_null_tails_only_when_it_is_on(made: Any) -> None:
    configuration = made()
    stores = make_plan(configuration).feed.stores
    assert not stores.missing(SAMPLES, (NULL_CAPTION,)).embeds
    assert stores.missing(SAMPLES, ("another",)).embeds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 2e-2}, "learning_rate: 0.01 there, 0.02 now"),
        ({"lora_rank": 8}, "lora_rank: 4 there, 8 now"),
        ({"seed": 1}, "seed: 42 there, 1 now"),
        ({"flavour": "edit-v2+"}, "model_flavour: edit-v2 there, edit-v2"),
    ],
)
def test_another_run_in_the_folder_is_refused_with_the_difference(
    made: Any, change: dict[str, Any], said: str
) -> None:
    train(made(max_train_steps=2))
    with pytest.raises(AnotherRecipe) as refused:
        train(made(max_train_steps=2, **change))
    assert said in refused.value.what
    assert "output_dir" in refused.value.do


def test_other_pairs_are_another_run(made: Any) -> None:
    train(made(SAMPLES, max_train_steps=2))
    grown = made_samples_with_edits(10, sizes=[(64, 64), (64, 96)])
    with pytest.raises(AnotherRecipe, match="dataset edits, pairs: 8 there, 10 now"):
        train(made(grown, max_train_steps=2))
    changed = [*SAMPLES[:-1], made_sample(SAMPLES[-1].name, captions=("keep it",))]
    with pytest.raises(AnotherRecipe, match="captions or sizes of its pairs have changed"):
        train(made(changed, max_train_steps=2))


def test_what_decides_nothing_may_change(made: Any) -> None:
    train(made(max_train_steps=2))
    outcome = train(made(max_train_steps=4, checkpoint_step_interval=3, checkpoints_total_limit=1))
    assert (outcome.kept, outcome.computed) == (2, 2)


def test_the_table_names_the_pairs_as_looking_at_each_does(made: Any) -> None:
    """A million pairs are named from the table's columns: the name must be the same."""
    configuration = made(SAMPLES)
    settings = configuration.settings
    checkpoint = open_checkpoint(settings)
    stores = open_stores(configuration, checkpoint)
    assert all_rows_are_there(configuration, checkpoint, stores, beside=(NULL_CAPTION,))
    assert not all_rows_are_there(configuration, checkpoint, stores, beside=("another",))
    digest = samples_digest(configuration, checkpoint, "edits")
    assert digest == digest_of_samples(SAMPLES)
    assert make_plan(configuration).run["datasets"]["edits"]["digest"] == digest
    # it is remembered by the table's name, which another content does not have
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_check, "_digest_in", lambda path: "looked again")
        assert samples_digest(configuration, checkpoint, "edits") == digest
        changed = [*SAMPLES[:-1], made_sample(SAMPLES[-1].name, captions=("keep it",))]
        assert samples_digest(made(changed), checkpoint, "edits") == "looked again"


def test_a_run_that_came_to_nothing_may_begin_again_with_other_settings(made: Any) -> None:
    with pytest.raises(WrongUse, match="betas"):
        train(made(optimizer_config={"betas": [2.0, 2.0]}))
    train(made(optimizer_config={"betas": [0.8, 0.9]}, max_train_steps=1))


def test_a_second_process_is_locked_out(made: Any) -> None:
    configuration = made()
    with (
        writer_lock(configuration.settings.output_dir, doing="train"),
        pytest.raises(Locked),
    ):
        train(configuration)


def test_resuming_from_nothing_never_overwrites(made: Any) -> None:
    train(made(max_train_steps=2))
    with pytest.raises(WrongUse, match="checkpoint-2"):
        train(made(max_train_steps=4, resume_from_checkpoint="none"))
    with pytest.raises(WrongUse, match="checkpoint-7"):
        train(made(max_train_steps=4, resume_from_checkpoint="checkpoint-7"))


def test_a_flipped_bit_in_a_checkpoint_is_found(made: Any) -> None:
    configuration = made(max_train_steps=2)
    train(configuration)
    file = configuration.settings.output_dir / "checkpoint-2" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match=r"weights\.safetensors"):
        train(made(max_train_steps=4))


def poison(monkeypatch: pytest.MonkeyPatch, *, steps: Collection[int]) -> None:
    """Have a NaN in the second sample of the first batch of these steps."""
    read = Feed.step

    def poisoned(feed: Feed, step: int) -> list[Batch]:
        batches = read(feed, step)
        if step in steps:
            batches[0].target[1] = float("nan")
        return batches

    monkeypatch.setattr(Feed, "step", poisoned)


def test_a_step_whose_loss_is_no_number_is_left_out_and_told(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = made(checkpoint_step_interval=3, max_train_steps=6)
    name = make_plan(configuration).feed.step(4)[0].names[1]
    poison(monkeypatch, steps=[4])
    told = Quiet()
    loop.run(configuration, told, device="cpu")
    assert name in told.warned[0]
    assert "step 4 is nan. The step was skipped." in told.warned[0]
    line = metrics(configuration)[3]
    assert (line["loss"], line["grad_norm"]) == (None, None)
    assert name in line["skipped"]
    assert all(one["loss"] > 0 for one in metrics(configuration) if one["step"] != 4)
    assert all(bool(weight.isfinite().all()) for weight in lora(configuration).values())
    state = read_state(configuration.settings.output_dir / "checkpoint-6")
    assert state["skips"] == {"in_a_row": 0, "in_all": 1}


def test_a_skipped_step_changes_neither_weights_nor_optimizer_nor_average(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = made(checkpoint_step_interval=1, max_train_steps=4)
    poison(monkeypatch, steps=[4])
    train(configuration)
    where = configuration.settings.output_dir
    for name in ("weights", "optimizer", "ema"):
        before, after = (
            (where / f"checkpoint-{step}" / f"{name}.safetensors").read_bytes() for step in (3, 4)
        )
        assert before == after, name


@pytest.mark.parametrize(
    ("steps", "last", "said"),
    [
        (range(4, 40), 7, "3 steps before it in a row"),
        (range(1, 40, 2), 21, "10 steps of this run"),
    ],
)
def test_too_many_skipped_steps_end_the_run_with_the_samples_name(
    made: Any, monkeypatch: pytest.MonkeyPatch, steps: range, last: int, said: str
) -> None:
    """Stopped and gone on in between: the count is a part of the checkpoint."""
    settings = {"checkpoint_step_interval": 1, "checkpoints_total_limit": 2}
    configuration = made(max_train_steps=40, **settings)
    name = make_plan(configuration).feed.step(last)[0].names[1]
    poison(monkeypatch, steps=steps)
    train(made(max_train_steps=5, **settings))
    with pytest.raises(QeditError, match=f"{name}.*step {last} is nan") as ended:
        train(configuration)
    assert said in ended.value.what
    assert checkpoint_names(configuration)[-1] == f"checkpoint-{last - 1}"
    assert [line["step"] for line in metrics(configuration)] == list(range(1, last))
    assert all(bool(weight.isfinite().all()) for weight in lora(configuration).values())


# -- Ctrl-C ----------------------------------------------------------------------------------


class Interrupting(Quiet):
    """Presses Ctrl-C while a given step is shown."""

    def __init__(self, *, at_step: int, times: int = 1) -> None:
        super().__init__()
        self.at_step, self.times, self.shown = at_step, times, 0

    def note(self, **values: str) -> None:
        self.shown += 1
        if self.shown == self.at_step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(
    made: Any, request: pytest.FixtureRequest
) -> None:
    # a shell that runs the tests in the background has them ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    configuration = made(checkpoint_step_interval=100)
    progress = Interrupting(at_step=3)
    with pytest.raises(KeyboardInterrupt):
        loop.run(configuration, progress, device="cpu")
    assert checkpoint_names(configuration) == ["checkpoint-3"]
    assert "Run `qedit train` again" in progress.said[-1]
    assert train(configuration).kept == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves_at_once(made: Any) -> None:
    configuration = made(checkpoint_step_interval=100)
    with pytest.raises(KeyboardInterrupt):
        loop.run(configuration, Interrupting(at_step=3, times=2), device="cpu")
    assert checkpoint_names(configuration) == []
