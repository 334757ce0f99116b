"""`qedit plan --vram N` foresees the memory of a step, and the way that `train` chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import loaded, make_run
from step_memory import TEXT_WIDTH, Case

from qedit.config.settings import Settings
from qedit.pipeline.plan.plan_words import plan_lines, plan_object
from qedit.pipeline.plan.planning import Plan, make_plan
from qedit.stages.models.memory_estimate.memory import memory_of
from qedit.stages.models.memory_estimate.memory_plan import (
    GIGABYTE,
    Fit,
    Recomputation,
    budget_of,
    needed_bytes,
)
from qedit.stages.train.apply_memory_plan import memory_budget_bytes

BLOCKS, HEADS, HEAD_WIDTH = 4, 4, 64
CONFIG = {
    "num_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": [16, 24, 24],
}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that plans a run of a model that is large enough to be measured."""
    folder = make_run(tmp_path, flavour="edit-v2", mixed_precision="bf16")
    config = folder / "model" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | CONFIG))
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps([{**one, "resolution": 256} for one in data]))
    monkeypatch.chdir(folder)

    def plan(vram_gb: float | None = None, **settings: Any) -> Plan:
        sets = [f"{key}={value}" for key, value in settings.items()]
        return make_plan(loaded(*sets), vram_gb=vram_gb)

    return plan


def card_for(plan: Plan, fit: Fit, *, rung: str) -> float:
    """GB of the smallest device that such a fit on such a rung needs."""
    (way,) = (one.rung.way for one in plan.fits if one.rung.name == rung)
    needs = needed_bytes(fit, sizes_of(plan), plan.load, way)
    return needs / budget_of(1e9) * 1.0001


def sizes_of(plan: Plan) -> Any:
    from qedit.stages.models.memory_estimate.dimensions import Dimensions

    assert plan.blocks == BLOCKS
    return Dimensions.of_config(CONFIG, zero_cond_t=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("rung", "fit"),
    [
        ("bf16", Fit(Recomputation(kept=3, attention=1))),
        pytest.param("bf16", Fit(Recomputation(attention=1)), marks=pytest.mark.full),
        pytest.param("modulation table", Fit(Recomputation(attention=2)), marks=pytest.mark.full),
        ("int8", Fit(Recomputation(attention=2))),
        ("4 bit", Fit(Recomputation(attention=1))),
        ("offloaded checkpoints", Fit(Recomputation(attention=1, inputs_to_host=True))),
        ("streamed blocks", Fit(Recomputation(inputs_to_host=True), streamed=4)),
    ],
    ids=str,
)
def test_a_step_takes_what_the_plan_announces_within_seven_percent(
    planned: Any, rung: str, fit: Fit
) -> None:
    """Without what is no tensor of the step: the driver, and the optimizer's averages."""
    plan = planned(card_for(planned(), fit, rung=rung))
    assert plan.chosen.rung.name == rung
    announced = plan.fitted
    assert (announced.recomputation, announced.streamed) == (fit.recomputation, fit.streamed)
    case = Case(
        blocks=BLOCKS, load=plan.load, way=plan.chosen.rung.way, heads=HEADS, head_width=HEAD_WIDTH
    )
    case.be_fitted(announced)
    beside = memory_of(case.sizes, plan.load, plan.chosen.rung.way)
    taken = case.peak() + case.frozen_bytes() + beside.lora
    assert announced.needs_bytes - beside.context - beside.optimizer == pytest.approx(
        taken, rel=0.07
    )


def test_plan_and_train_count_with_the_same_memory(planned: Any) -> None:
    for settings in ({}, {"memory": 12}):
        plan = planned(24.0, **settings)
        trained = Settings(model_flavour="edit-v2", memory=settings.get("memory", 24))
        assert plan.fitted.of_bytes == memory_budget_bytes(trained, torch.device("cpu"))
    assert plan.fitted.of_bytes == round(0.96 * 12 * GIGABYTE)
    assert plan.training.startswith("a step takes about 0.5 of 11.5 GB: ")


def choice(plan: Plan) -> str:
    """What is said of the device."""
    (line,) = (line for line in plan_lines(plan) if line.startswith("for "))
    return line


@pytest.mark.parametrize(
    ("settings", "limit", "remedies"),
    [
        (
            {"memory": 1, "train_batch_size": 30000},
            "1.0 GB",
            "raise `memory`, lower `train_batch_size`, lower `resolution` or use fewer references",
        ),
        (
            {"memory": 90, "train_batch_size": 30000},
            "80.0 GB",
            "lower `train_batch_size`, lower `resolution` or use fewer references",
        ),
        ({"vram": 0.1}, "100.0 MB", "lower `resolution` or use fewer references"),
        (
            {"model_type": "full", "memory": 1, "vram": 0.5},
            "500.0 MB",
            "lower `resolution` or use fewer references",
        ),
    ],
)
def test_what_does_not_fit_is_told_what_would_help(
    planned: Any, settings: dict[str, Any], limit: str, remedies: str
) -> None:
    settings = dict(settings)
    plan = planned(settings.pop("vram", 80.0), **settings)
    assert plan.chosen is None
    assert choice(plan) == f"{'for ' + limit:18} nothing fits: {remedies}"


def test_what_is_to_spare_is_of_what_the_run_may_take(planned: Any) -> None:
    """Of `memory`, where that is less than the device has, and without what fragments take."""
    alone, both = planned(1.0), planned(80.0, memory=1)
    assert alone.chosen.memory.total == both.chosen.memory.total
    spare = 0.96 * GIGABYTE - both.chosen.memory.total
    assert choice(alone).endswith(f" ({spare / 1e6:.1f} MB to spare)")
    assert choice(both).endswith(f" ({spare / 1e6:.1f} MB of `memory` to spare)")
    assert choice(both).startswith("for 1.0 GB ")
    said = plan_object(both)
    assert (said["vram_bytes"], said["limit_bytes"]) == (80 * GIGABYTE, GIGABYTE)


def test_a_full_training_does_not_look_at_memory(planned: Any) -> None:
    plan = planned(80.0, memory=1, model_type="full", train_batch_size=60)
    assert plan.memory.total > GIGABYTE
    assert plan.chosen is not None
    assert choice(plan).startswith("for 80.0 GB ")
    assert choice(plan).endswith(" GB to spare)")


def test_a_number_of_blocks_that_is_streamed_holds_in_the_plan_too(planned: Any) -> None:
    plan = planned(24.0, blocks_to_stream=2)
    assert plan.fitted.streamed == 2
    assert "the weights of 2 blocks are in host RAM" in plan.training
    assert [one.rung.name for one in plan.fits][-1] == "offloaded checkpoints"
    assert all(one.rung.way.streamed == 2 for one in plan.fits)
