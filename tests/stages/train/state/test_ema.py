"""The average of the weights moves beside the next step, to the bit as if every step waited."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from training import train

from qedit.stages.train.state import ema as averages
from qedit.stages.train.state.ema import Ema

SHAPES = ((3, 5), (7,), (2, 3, 4))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def drawn(
    step: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        str(shape): torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES
    }


def moved(ema: Ema, *, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The average after five steps, of which each overwrites the weights of the one before."""
    weights = drawn(0, device=device, dtype=dtype)
    for step in range(1, 6):
        for name, value in drawn(step, device=device, dtype=dtype).items():
            weights[name].copy_(value)
        ema.follow(weights, step=step)
    return {name: one.clone() for name, one in ema.shadow.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_it_is_the_average_of_steps_that_wait(
    device: str, every: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Ema:
        return Ema(drawn(0, dtype=dtype), decay=0.9, every_steps=every)

    found = moved(made(), device=device, dtype=dtype)
    monkeypatch.setattr(averages, "MOST_COPIED_BYTES", 0)
    one_by_one = made()
    assert one_by_one._aside is None
    expected = moved(one_by_one, device=device, dtype=dtype)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_step_goes_on_while_the_average_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    may_move, real = threading.Event(), averages._Aside._move

    def held_up(self: Any, *given: Any) -> None:
        assert may_move.wait(timeout=30)
        real(self, *given)

    monkeypatch.setattr(averages._Aside, "_move", held_up)
    ema, weights = Ema({"w": torch.zeros(2)}, decay=0.0), {"w": torch.ones(2)}
    ema.follow(weights, step=1)
    weights["w"].fill_(5.0)  # the next step's, which is none of this average's
    may_move.set()
    assert ema.shadow["w"].tolist() == [1.0, 1.0]


def test_what_goes_wrong_aside_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *given: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(averages._Aside, "_move", broken)
    ema = Ema({"w": torch.zeros(2)}, decay=0.0)
    ema.follow({"w": torch.ones(2)}, step=1)
    with pytest.raises(RuntimeError, match="no memory"):
        _ = ema.shadow


def test_the_average_follows_its_formula() -> None:
    weights = {"w": torch.tensor([1.0])}
    ema = Ema(weights, decay=0.2)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0, 16.0), start=1):
        k = step - 1
        decay = min(0.2, (1 + k) / (10 + k))
        expected -= (1 - decay) * (expected - value)
        ema.follow({"w": torch.tensor([value])}, step=step)
    assert ema.shadow["w"].item() == pytest.approx(expected)
    assert weights["w"].item() == 1.0


def test_a_bfloat16_weight_is_averaged_in_float32_at_its_interval() -> None:
    ema = Ema({"w": torch.ones(1, dtype=torch.bfloat16)}, decay=0.995, every_steps=2)
    assert ema.shadow["w"].dtype == torch.float32
    ema.follow({"w": torch.zeros(1)}, step=1)
    assert ema.shadow["w"].item() == 1.0
    ema.follow({"w": torch.zeros(1)}, step=2)
    assert ema.shadow["w"].item() < 1.0


def test_without_an_average_there_is_none(made: Any) -> None:
    configuration = made(use_ema=False, max_train_steps=1)
    train(configuration)
    assert not (configuration.settings.output_dir / "ema").exists()
