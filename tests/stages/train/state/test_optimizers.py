"""Optimizers by name: each is what it is called, and goes on after a kill to the bit."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from quiet import Quiet
from training import bits_of, lora, metrics, train

from qedit.cache.errors import WrongUse
from qedit.config.settings import Settings
from qedit.stages.train import loop
from qedit.stages.train.model import remarks
from qedit.stages.train.plan import training_plan
from qedit.stages.train.state.checkpoint import Trained, save_checkpoint
from qedit.stages.train.state.optimizers import KINDS, make_optimizer, refuse_optimizer

ELSEWHERE = {name: kind for name, kind in KINDS.items() if not kind.module.startswith("torch")}


class Killed(Exception):
    """Stands for the end of a process in the middle of a run."""


class Killing(Quiet):
    def note(self, **values: str) -> None:
        if self.moved == 4:
            raise Killed


def test_killed_and_resumed_is_as_never_killed(made: Any) -> None:
    options = {"momentum": 0.9}
    settings = {"optimizer": "muon", "optimizer_config": options, "max_train_steps": 5}
    whole = made(output="whole/run", **settings)
    train(whole)
    pieces = made(output="pieces/run", **settings)
    with pytest.raises(Killed):
        loop.run(pieces, Killing(), device="cpu")
    assert train(pieces).kept == 2
    kind = "checkpoint-5/optimizer.safetensors"
    for file in ("pytorch_lora_weights.safetensors", kind):
        one, other = (made.settings.output_dir / file for made in (whole, pieces))
        assert one.read_bytes() == other.read_bytes()
    assert [line["loss"] for line in metrics(whole)] == [line["loss"] for line in metrics(pieces)]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_missing_package_is_named_before_anything_is_loaded(
    made: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = ELSEWHERE[name]
    for module in {kind.module.partition(".")[0], kind.module}:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(training_plan, "Run", lambda *args, **named: 1 / 0)
    with pytest.raises(WrongUse, match=kind.package) as refused:
        train(made(optimizer=name))
    assert "pip install 'qedit[optimizers]'" in refused.value.do


class Odd(torch.optim.Optimizer):
    """Keeps what such packages keep: numbers with the weights, and a guess in its group."""

    def __init__(self, params: Any, lr: float, sign: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "sign": sign, "d": 1e-6, "k": 0})

    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        group["d"], group["k"] = group["d"] * 1.7 + 0.1, group["k"] + 1
        for weight in group["params"]:
            state = self.state[weight]
            state["count"] = state.get("count", 0) + 1
            state["size"] = 0.5 * state.get("size", 0.0) + float(weight.grad.norm())
            weight.data -= group["lr"] * group["sign"] * group["d"] / state["size"] * weight.grad


@pytest.mark.parametrize("name", ELSEWHERE)
def test_packages_get_their_options_and_all_their_numbers_are_kept(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType(ELSEWHERE[name].module)
    monkeypatch.setattr(module, ELSEWHERE[name].name, Odd, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__.partition(".")[0], module)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def fresh() -> Trained:
        torch.manual_seed(1)
        weights = {one: torch.nn.Parameter(torch.randn(3, 2)) for one in ("a", "b")}
        options: dict[str, Any] = {"name": name, "config": {"sign": -1.0}}
        return Trained(weights, make_optimizer(weights, learning_rate=0.1, **options), None)

    def moved(trained: Trained, steps: int) -> Trained:
        for _ in range(steps):
            trained.optimizer.zero_grad()
            sum(weight.square().sum() for weight in trained.weights.values()).backward()
            trained.optimizer.step()
        return trained

    assert isinstance(fresh().optimizer, Odd)
    assert fresh().optimizer.param_groups[0]["sign"] == -1.0
    folder = save_checkpoint(tmp_path, moved(fresh(), 2), step=2, of_steps=4, run={}, limit=1)
    resumed = fresh()
    resumed.restore(folder)
    assert bits_of(moved(resumed, 2)) == bits_of(moved(fresh(), 4))


# bitsandbytes takes seconds to import
REAL = [
    pytest.param(name, marks=pytest.mark.full) if kind.package == "bitsandbytes" else name
    for name, kind in KINDS.items()
]
# where two steps of each have led, by name
_ways: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize("name", REAL)
def test_every_optimizer_is_itself_and_goes_on_after_a_kill_to_the_bit(
    tmp_path: Path, name: str
) -> None:
    def fresh() -> Trained:
        torch.manual_seed(1)
        shapes = {"lora_A": (16, 300), "lora_B": (300, 16)}
        weights = {one: torch.nn.Parameter(torch.randn(shape)) for one, shape in shapes.items()}
        return Trained(weights, make_optimizer(weights, learning_rate=1e-2, name=name), None)

    def moved(trained: Trained, steps: int) -> Trained:
        for _ in range(steps):
            trained.optimizer.zero_grad()
            sum((weight - 1).square().sum() for weight in trained.weights.values()).backward()
            trained.optimizer.step()
        return trained

    before = fresh().weights["lora_A"].detach()
    folder = save_checkpoint(tmp_path, moved(fresh(), 2), step=2, of_steps=4, run={}, limit=1)
    resumed = fresh()
    resumed.restore(folder)
    whole = moved(fresh(), 4)
    assert bits_of(moved(resumed, 2)) == bits_of(whole)
    after = whole.weights["lora_A"].detach()
    assert (after - 1).abs().sum() < (before - 1).abs().sum()
    assert not any(torch.equal(after, way) for other, way in _ways.items() if other != name)
    _ways[name] = after
    if name == "adamw-8bit":
        kept = whole.optimizer.state[whole.weights["lora_A"]]["state1"]
        assert kept.dtype == torch.uint8


def test_an_argument_that_an_optimizer_does_not_take_is_refused() -> None:
    weights = {"a": torch.nn.Parameter(torch.zeros(2, 2))}
    with pytest.raises(WrongUse, match=r"Muon.*betas"):
        make_optimizer(weights, learning_rate=0.1, name="muon", config={"betas": [0.9, 0.99]})
    vector = {"a": torch.nn.Parameter(torch.zeros(2))}
    with pytest.raises(WrongUse, match="2D"):
        make_optimizer(vector, learning_rate=0.1, name="muon")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("adamw", {"betas": 0.9}),
        ("adamw", {"weight_decay": "0.1"}),
        ("prodigy", {"betas": 0.9}),
        ("lion", {"betas": [0.9]}),
        ("lion", {"betas": [2.0, 0.9]}),
        ("came", {"betas": [0.9, 0.95]}),
        ("muon", {"ns_steps": 500}),
    ],
)
def test_values_that_an_optimizer_cannot_step_with_are_refused(
    name: str, config: dict[str, Any]
) -> None:
    given = {"model_flavour": "edit-v2", "optimizer": name, "optimizer_config": config}
    with pytest.raises(WrongUse, match="`optimizer_config` does not fit") as refused:
        refuse_optimizer(Settings.model_validate(given))
    assert re.search(r": .+[^.]\.$", refused.value.what)


@pytest.mark.parametrize("name", REAL)
def test_what_an_optimizer_takes_raises_nothing(name: str) -> None:
    config = (
        {} if name in ("adafactor", "muon") else {"betas": [0.9] * (3 if name == "came" else 2)}
    )
    config["weight_decay"] = 0.1
    given = {"model_flavour": "edit-v2", "optimizer": name, "optimizer_config": config}
    refuse_optimizer(Settings.model_validate(given))
    if name == "adamw":  # for GPUs alone
        given["optimizer_config"] = {"capturable": True, "fused": False}
        refuse_optimizer(Settings.model_validate(given))


def test_what_comes_to_little_is_said(made: Any) -> None:
    def said(**settings: Any) -> str:
        return " ".join(remarks(training_plan.make_plan(made(**settings))))

    assert "multiplies it by `learning_rate`, which is 0.01" in said(optimizer="prodigy")
    assert "learning_rate" not in said(optimizer="prodigy", learning_rate=1.0)
    epoch = {"num_train_epochs": 1, "lr_warmup_steps": 4}  # of 8 samples, 2 a step
    assert "the run has 4 steps" in said(**epoch)
    assert "lr_warmup_steps" not in said(**{**epoch, "lr_warmup_steps": 3})
    # the widest rank that a 64x64 matrix can use is 64
    assert "to_q can use: its matrix is 64x64" in said(lora_rank=65, lora_target_modules=["to_q"])
    assert "lora_rank" not in said(lora_rank=64, lora_target_modules="all-linear")


# -- init_lora -------------------------------------------------------------------------------


def test_a_run_begins_as_the_lora_it_is_given(made: Any) -> None:
    before = made(output="before", use_ema=False, lora_format="kohya")
    train(before)
    file = before.settings.output_dir / "pytorch_lora_weights.safetensors"
    rest = {"init_lora": str(file), "learning_rate": 1e-12, "max_train_steps": 1}
    after = made(output="after", **rest)
    train(after)
    kohya, diffusers = lora(before), lora(after)
    names = {name: name.removeprefix("transformer.").replace(".", "_") for name in diffusers}
    for name, flat in names.items():
        flat = flat.replace("_lora_A_", ".lora_down.").replace("_lora_B_", ".lora_up.")
        torch.testing.assert_close(diffusers[name], kohya[f"lora_unet_{flat}"])
    file.unlink()  # a run that goes on no longer needs it
    assert train(made(output="after", **{**rest, "max_train_steps": 2})).kept == 1


def test_a_lora_of_a_higher_rank_is_refused_before_anything_is_loaded(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made(output="before", max_train_steps=1)
    train(before)
    file = before.settings.output_dir / "pytorch_lora_weights.safetensors"
    monkeypatch.setattr(loop.Trainer, "load", lambda *args, **named: 1 / 0)
    with pytest.raises(WrongUse, match=r"rank 4, and `lora_rank` is 2") as refused:
        train(made(init_lora=str(file), lora_rank=2))
    assert "lora_rank=4" in refused.value.do
    with pytest.raises(WrongUse, match="nowhere"):
        train(made(init_lora="nowhere.safetensors"))
