"""TensorBoard and Weights & Biases get each step once, also after a resume."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from training import metrics, train

from qedit.cache.errors import WrongUse


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_loaded(
    made: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("qedit.stages.train.metrics.find_spec", lambda package: None)
    configuration = made(report_to=name)
    with pytest.raises(WrongUse, match=f"needs the package {name}") as refused:
        train(configuration)
    assert f"pip install 'qedit[{name}]'" in refused.value.do
    assert not configuration.settings.output_dir.exists()


class WandbRun:
    """Stands for a run of Weights & Biases: what it was told, in the words it knows alone.

    Signatures as of wandb 0.22; that the real package takes them is tested where it is there.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.logged, self.axes, self.is_over = options, [], [], False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert not self.is_over, "a run that is over takes nothing"
        assert all(isinstance(value, int | float) for value in data.values())
        self.logged.append(data)

    def finish(self, exit_code: int | None = None) -> None:
        self.is_over = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[WandbRun]:
    """A stand-in for the package: the real one starts a service of its own."""
    runs: list[WandbRun] = []
    module = ModuleType("wandb")

    def init(
        *, project: str, name: str, id: str, resume: str, dir: str, config: dict[str, Any]
    ) -> WandbRun:
        assert resume in ("allow", "must", "never", "auto")
        assert re.fullmatch(r"[^/\\#?%:]{1,128}", id)
        assert Path(dir).is_dir()  # else it would write to the working directory
        options = {"project": project, "name": name, "id": id, "resume": resume, "dir": dir}
        runs.append(WandbRun(options | {"config": json.loads(json.dumps(config))}))
        return runs[-1]

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("qedit.stages.train.metrics.find_spec", lambda package: object())
    return runs


def test_wandb_gets_every_number_and_goes_on_with_the_same_run(
    made: Any, wandb: list[WandbRun]
) -> None:
    settings = {"report_to": "wandb", "tracker_project_name": "cats"}
    configuration = made(max_train_steps=2, **settings)
    train(configuration)
    train(made(max_train_steps=4, **settings))
    first, second = wandb
    assert first.options["project"] == "cats"
    assert first.options["resume"] == "allow"
    assert first.options["dir"] == str(configuration.settings.output_dir)
    assert first.options["config"]["settings"]["lora_rank"] == 4
    assert first.options["id"] == second.options["id"]
    assert [line["step"] for line in first.logged] == [1, 2]
    assert [line["step"] for line in second.logged] == [3, 4]
    assert first.axes == [("step", None), ("*", "step")]
    assert first.is_over
    line = metrics(configuration)[0]
    assert first.logged[0]["loss"] == line["loss"]
    (band, value), *_ = line["loss_by_sigma"].items()
    assert first.logged[0][f"loss_by_sigma/{band}"] == value
    # another folder is another run
    train(made(max_train_steps=1, output="other", **settings))
    assert wandb[2].options["id"] != first.options["id"]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_keeps_both_pieces_of_a_run_on_this_machine(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra and is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    configuration = made(max_train_steps=2, report_to="wandb")
    train(configuration)
    train(made(max_train_steps=4, report_to="wandb"))
    where = configuration.settings.output_dir
    name = json.loads((where / "wandb.json").read_text(encoding="utf-8"))["id"]
    kept = [path.name for path in (where / "wandb").glob("offline-run-*")]
    assert len(kept) == 2
    assert all(one.endswith(name) for one in kept)
    assert all((where / "wandb" / one / f"run-{name}.wandb").stat().st_size > 0 for one in kept)


def test_a_tracker_is_closed_when_the_training_fails(
    made: Any, wandb: list[WandbRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qedit.stages.train.trainer import Trainer

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(made(report_to="wandb"))
    assert wandb[0].is_over


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_step_once_also_after_a_resume(made: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra and is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from qedit.cache.files.atomic import remove

    configuration = made(max_train_steps=4, report_to="tensorboard")
    train(configuration)
    where = configuration.settings.output_dir
    # as if it had been killed right after step 4
    remove(where / "checkpoint-4")
    train(configuration)
    events = EventAccumulator(str(where / "tensorboard"))
    events.Reload()
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == [1, 2, 3, 4]
    losses = [line["loss"] for line in metrics(configuration)]
    assert [event.value for event in shown] == pytest.approx(losses, rel=1e-6)
    assert {"lr", "grad_norm", "data_wait_seconds", "padding"} <= set(events.Tags()["scalars"])
