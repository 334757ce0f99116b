"""`conditioning_multidataset_sampling` random, from the key to the rows that training reads."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from small_run import SIZES, cache_rows, loaded, make_run

from qedit.stages.train.data.feed import Batch
from qedit.stages.train.plan.training_plan import make_plan

RANDOM = "conditioning_multidataset_sampling=random"
ONE = {name: f'data.edited.conditioning_data=["{name}"]' for name in ("reference-a", "reference-b")}
EPOCHS = 8


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_run(tmp_path, flavour="edit-v2", references=2))
    return tmp_path


def shown(*sets: str, epochs: int = 1) -> list[Batch]:
    """What a run with these settings trains on, a sample a batch."""
    cache_rows(*(word for one in sets for word in ("--set", one)))
    plan = make_plan(loaded(*sets))
    steps = range(1, 1 + epochs * len(SIZES))
    return [batch for step in steps for batch in plan.feed.step(step)]


def rows_of(batch: Batch) -> tuple[bytes, ...]:
    """Reference and text, as read."""
    (reference,) = batch.references
    return tuple(one.view(torch.uint8).numpy().tobytes() for one in (reference, batch.embeds))


def target_of(batch: Batch) -> bytes:
    return batch.target.view(torch.uint8).numpy().tobytes()


def test_a_sample_is_shown_with_one_reference_and_the_embeds_of_that_one(here: Path) -> None:
    assert {len(batch.references) for batch in shown()} == {2}
    # what a run reads that has one of the datasets alone
    alone = {
        name: {target_of(batch): rows_of(batch) for batch in shown(one)}
        for name, one in ONE.items()
    }
    assert all(len(rows) == len(SIZES) for rows in alone.values())
    taken = defaultdict(set)
    for batch in shown(RANDOM, epochs=EPOCHS):
        target, rows = target_of(batch), rows_of(batch)
        (name,) = (name for name, own in alone.items() if own[target] == rows)
        taken[target].add(name)
    assert set(taken) == set(alone["reference-a"])
    # by chance alone one of the four would stay with one reference in 3 of 100 orders
    assert all(names == set(ONE) for names in taken.values())
