"""What processes say to each other, without any: the order of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from qedit.stages.train.ranks import Ranks


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
