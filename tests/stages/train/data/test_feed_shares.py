"""Several processes share a step: every sample in one share, positions as in the whole."""

from __future__ import annotations

from itertools import chain

import pytest

from qedit.stages.train.data.feed import Slice, share_of

STEPS = (["abcd"], ["abc", "d", "ef"], ["a"], ["a", "b", "c", "d"], ["abcdefgh", "ij"])


@pytest.mark.parametrize("batches", STEPS, ids=str)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_the_shares_are_the_step(batches: list[str], world: int) -> None:
    whole = "".join(batches)
    shares = [share_of(batches, rank, world) for rank in range(world)]
    taken = [item for share in shares for part in share for item in part.items]
    assert "".join(taken) == whole
    sizes = [sum(len(part.items) for part in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for part in chain.from_iterable(shares):
        end = part.first_position + len(part.items)
        assert whole[part.first_position : end] == "".join(part.items)


@pytest.mark.parametrize("batches", STEPS, ids=str)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_slice_reaches_across_batches(batches: list[str], world: int) -> None:
    for rank in range(world):
        for part in share_of(batches, rank, world):
            assert any("".join(part.items) in batch for batch in batches)


def test_one_process_takes_the_batches_as_they_are() -> None:
    assert share_of(["abc", "d"]) == [Slice(0, ("a", "b", "c")), Slice(3, ("d",))]
