"""A step whose loss is not a number is skipped; too many of them end the run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from quiet import Quiet
from training import checkpoint_names, lora, metrics, train

from qedit.cache.errors import QeditError
from qedit.stages.train import loop
from qedit.stages.train.data.feed import Batch, Feed
from qedit.stages.train.objective.step import StepLosses
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state.checkpoint import read_state
from qedit.stages.train.state.skips import Skips, find_not_finite


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


def test_the_sample_that_broke_a_run_can_be_inspected_as_it_is_said() -> None:
    losses = StepLosses(
        torch.tensor([1.0, torch.nan]), torch.zeros(2), ("a", "b c.png"), ("", ""), 2
    )
    broken = find_not_finite(7, losses, 1.0)
    skips = Skips(in_a_row=3, in_all=3)
    with pytest.raises(QeditError, match=r"loss of b c.png .*step 7 is nan") as stopped:
        skips.skipped(broken)
    assert "`qedit inspect 'b c.png'`" in stopped.value.do
    whole = replace(losses, values=torch.ones(2))
    assert find_not_finite(7, whole, float("inf")).sample == "a"
    assert find_not_finite(7, whole, 1.0) is None


def test_a_sample_that_is_in_a_step_twice_is_told_with_the_caption_it_broke_with() -> None:
    losses = StepLosses(
        torch.tensor([1.0, torch.nan, torch.inf]), torch.zeros(3), ("a",) * 3, ("x", "y", "z"), 3
    )
    assert list(losses.not_finite) == [1, 2]
    broken = find_not_finite(7, losses, 1.0)
    assert broken.sample == "a"
    assert "(caption: 'y') at step 7 is nan" in broken.why
