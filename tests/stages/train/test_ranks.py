"""Processes of one run agree on errors and stops; without others, nothing is exchanged."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from qedit.cache.errors import OfOneProcess, QeditError, WrongUse
from qedit.config.settings import Settings
from qedit.stages.train.ranks import IdleRanks, Ranks, among_others, refuse_idle_processes


def test_a_sum_on_gpus_begins_when_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # it has less time than the first process may take for a preview
    said: list[str] = []

    def all_gather(every: list[torch.Tensor], mine: torch.Tensor) -> None:
        said.append("here")
        for one in every:
            one.copy_(mine)

    def all_reduce(bucket: torch.Tensor, group: Any) -> None:
        said.append(f"sum in {group}")
        bucket.mul_(2)

    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    weight = torch.nn.Parameter(torch.zeros(3))
    for gradients, expected in (("gpus", ["here", "here", "sum in gpus"]), (None, ["sum in None"])):
        said.clear()
        weight.grad = torch.ones(3)
        ranks = Ranks(rank=1, world=2)
        object.__setattr__(ranks, "gradients", gradients)  # the name will do for a group
        ranks.sum_gradients([weight])
        assert said == expected
        assert weight.grad is not None
        assert weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_step_too_small_to_share_is_refused_and_said_by_the_first_one_alone() -> None:
    settings = Settings(model_flavour="edit-v2", train_batch_size=3, gradient_accumulation_steps=1)
    refuse_idle_processes(settings, 3)
    for rank in (0, 1):
        with (
            pytest.raises(IdleRanks, match="3 samples, too few for 4 processes") as refused,
            Ranks(rank=rank, world=4).saying_who(),
        ):
            refuse_idle_processes(settings, 4)
        # who raises an error that is not of one process says nothing unless it is the first
        assert not isinstance(refused.value, OfOneProcess)
        assert "gradient_accumulation_steps=2" in refused.value.do


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("pair.cc:553] Connection closed by peer [127.0.0.1]:712.", "has ended, so process 1"),
        (
            "buffer.cc:78] Timed out waiting 86400000ms for recv",
            "has not answered for 24 hours, so process 1",
        ),
    ],
)
def test_a_process_that_is_silent_is_not_said_to_have_ended(
    monkeypatch: pytest.MonkeyPatch, said: str, means: str
) -> None:
    def all_gather(*_: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(dist, "all_gather", all_gather)
    with pytest.raises(QeditError, match=f"Another process of this run {means} of"):
        Ranks(rank=1, world=2).gathered(True)


def test_others_wait_as_long_as_the_first_one_may_make_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[timedelta] = []

    def init_process_group(backend: str, *, timeout: timedelta) -> None:
        asked.append(timeout)

    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with among_others(torch.device("cpu")) as ranks:
        assert ranks == Ranks(rank=1, world=2)
    # four previews of 30 steps on a CPU, several of them
    assert asked[0] >= timedelta(hours=12)


def test_what_goes_wrong_in_one_process_is_said_with_its_number() -> None:
    for error in (WrongUse("No room.", "Make some."), RuntimeError("No room.")):
        with (
            pytest.raises(OfOneProcess, match=r"Process 2 of 3: .*No room\.") as said,
            Ranks(rank=2, world=3).saying_who(),
        ):
            raise error
        assert said.value.do == getattr(error, "do", "")
        with pytest.raises(type(error), match=r"^No room"), Ranks(rank=0, world=3).saying_who():
            raise error
