"""How many items go through an encoder at a time."""

from __future__ import annotations

import pytest
import torch

from qedit.stages.encoding.device_options import BatchSize
from qedit.stages.models import device as device_module
from qedit.stages.models.device import MemoryUse


def test_what_fits_is_measured_on_one_item(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = BatchSize(None, most=16, budget=1)
    taken = MemoryUse(used_bytes=100, free_bytes=1000)
    monkeypatch.setattr(device_module, "memory_taken", lambda work, device: taken)
    sizes.measure(lambda: None, cost=50, device=torch.device("cpu"))
    # 70 % of ten times as much as one item of size 50: seven, three and so on, but powers of two,
    # which a little more or less of free memory does not change
    assert (sizes.of(50), sizes.of(100), sizes.of(1000), sizes.of(1)) == (4, 2, 1, 16)
    sizes.was_too_much(4, cost=50)
    assert sizes.of(50) == 2


def test_a_number_that_was_asked_for_stands_until_it_does_not_fit() -> None:
    sizes = BatchSize(6, most=2, budget=1)
    sizes.measure(pytest.fail, cost=1, device=torch.device("cpu"))
    assert sizes.of(10**9) == 6
    sizes.was_too_much(6, cost=10)
    assert (sizes.of(10), sizes.of(5)) == (3, 6)
