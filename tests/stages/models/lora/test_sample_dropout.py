"""The operator that draws the dropout of each sample, as compilers see it."""

from __future__ import annotations

import pytest
import torch

from qedit.stages.models.lora import sample_dropout


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("tokens", [20, sample_dropout.TOKENS_AT_A_TIME + 1])
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_operator_is_what_compilers_are_told_of_it(
    rows: int, tokens: int, contiguous: bool
) -> None:
    """Its strides among it, of several samples and of what comes several times over."""
    states = torch.randn(rows, tokens, 8)
    if not contiguous:
        states = torch.randn(tokens, rows, 8).transpose(0, 1)
    seeds = torch.tensor([1, 2])
    checked = torch.library.opcheck(torch.ops.qedit.kept.default, (states, seeds, 0.3))
    assert set(checked.values()) == {"SUCCESS"}
