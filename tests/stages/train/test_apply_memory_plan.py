"""A run is fitted into memory in the least costly way; every way gives the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from training import lora, metrics, train

from qedit.cache.errors import WrongUse
from qedit.config.loading import Configuration
from qedit.config.settings import Settings
from qedit.stages.models.memory_estimate.dimensions import Dimensions
from qedit.stages.models.memory_estimate.memory import Load, Way
from qedit.stages.models.memory_estimate.memory_plan import (
    Fit,
    Recomputation,
    attention_bytes,
    budget_of,
    fit_into,
    needed_bytes,
)
from qedit.stages.train import apply_memory_plan

GB = 1_000_000_000
FULL = Dimensions(
    blocks=60, heads=24, head_width=128, text_width=3584, channels_in=64, channels_out=64
)
BF16 = Way(table=True)
INT8, FOUR_BITS = replace(BF16, precision="int8-quanto"), replace(BF16, precision="int4-quanto")


def load_of(references: int) -> Load:
    return Load(((1024, 1024),) * (1 + references), 128 + 196 * references)


@pytest.mark.parametrize(
    ("gigabytes", "way", "references"),
    [(48, BF16, 1), (24, INT8, 1), (16, FOUR_BITS, 1), (24, FOUR_BITS, 3)],
)
def test_cards_that_train_at_full_speed(gigabytes: int, way: Way, references: int) -> None:
    fit = fit_into(gigabytes * GB, FULL, load_of(references), way)
    assert fit.streamed == 0
    assert fit.recomputation is None or not fit.recomputation.inputs_to_host


def test_smaller_cards_wait_for_their_bus() -> None:
    twelve, eight = (fit_into(size * GB, FULL, load_of(1), FOUR_BITS) for size in (12, 8))
    assert twelve.streamed == 0
    assert twelve.recomputation is not None
    assert twelve.recomputation.inputs_to_host
    # what the inputs leave free, what attention gave fills
    assert 0 < twelve.recomputation.attention < FULL.blocks
    assert 0 <= 12 * GB - twelve.needs_bytes < attention_bytes(FULL, load_of(1), FOUR_BITS)
    assert eight.recomputation == Recomputation(inputs_to_host=True)
    assert 0 < eight.streamed < FULL.blocks


def test_more_memory_never_costs_more_time() -> None:
    def cost(fit: Fit) -> tuple[int, bool, int]:
        how = fit.recomputation or Recomputation(kept=FULL.blocks + 1)
        return (fit.streamed, how.inputs_to_host, -2 * how.kept - how.attention)

    sizes = (8, 12, 16, 18, 20, 21, 22, 40, 56, 88, 120)
    fits = [fit_into(size * GB, FULL, load_of(1), INT8) for size in sizes]
    costs = [cost(fit) for fit in fits]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) > 8
    for size, fit in zip(sizes, fits, strict=True):
        assert fit.needs_bytes == needed_bytes(fit, FULL, load_of(1), INT8) <= size * GB
    assert fits[-1].recomputation is None


def test_what_fits_in_no_way_is_refused() -> None:
    with pytest.raises(WrongUse, match=r"smallest way, and there are 2\.0 GB"):
        fit_into(2 * GB, FULL, load_of(1), FOUR_BITS)


def test_a_number_of_streamed_blocks_is_taken_as_it_is() -> None:
    fit = fit_into(140 * GB, FULL, load_of(1), BF16, streamed=7)
    # a block that is not computed again would hold its weights
    assert (fit.recomputation, fit.streamed) == (Recomputation(attention=FULL.blocks), 7)
    with pytest.raises(WrongUse):
        fit_into(12 * GB, FULL, load_of(1), BF16, streamed=7)


def trained(configuration: Configuration) -> tuple[list[float], dict[str, torch.Tensor]]:
    train(configuration)
    return [line["loss"] for line in metrics(configuration) if "loss" in line], lora(configuration)


@pytest.mark.parametrize(
    ("settings", "fit"),
    [
        ({"gradient_checkpointing": False}, Fit(None)),
        ({"blocks_to_stream": 1}, Fit(Recomputation(), streamed=1)),
        ({"blocks_to_stream": 2, "gradient_checkpointing": False}, Fit(None, streamed=2)),
        ({"memory": 1}, Fit(None)),
    ],
    ids=str,
)
def test_every_way_trains_the_same_lora(
    made: Callable[..., Configuration],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    fit: Fit,
) -> None:
    applied: list[Fit] = []
    real = apply_memory_plan.apply_fit

    def watched(one: Fit, *given: Any, **named: Any) -> None:
        applied.append(one)
        real(one, *given, **named)

    common = {"max_train_steps": 2, "lora_dropout": 0.1}
    expected = trained(made(output="plain", **common))
    monkeypatch.setattr("qedit.stages.train.trainer.apply_fit", watched)
    found = trained(made(**common, **settings))
    without = {"needs_bytes": 0, "of_bytes": 0, "instead_bytes": 0}
    assert [replace(one, **without) for one in applied] == [fit]
    assert found[0] == expected[0]
    for name, weight in expected[1].items():
        assert torch.equal(found[1][name], weight), name


def test_no_memory_at_all_is_refused_as_it_is_read() -> None:
    with pytest.raises(ValueError, match='must be "auto" or a whole number above 0, not 0'):
        Settings(model_flavour="edit-v1", memory=0)
    assert Settings(model_flavour="edit-v1", blocks_to_stream=0).blocks_to_stream == 0


@pytest.mark.parametrize(("memory", "counted"), [("auto", 10.5), (8, 8.0), (20, 10.5)])
def test_memory_is_what_may_be_used_of_what_is_free(
    memory: Any, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 24 * GB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    settings = Settings(model_flavour="edit-v1", memory=memory)
    found = apply_memory_plan.memory_budget_bytes(settings, torch.device("cuda"))
    assert found == budget_of(counted * GB)


def test_a_fit_says_why_it_is_no_faster_one() -> None:
    fit = fit_into(24 * GB, FULL, load_of(1), INT8)
    found = re.fullmatch(r"about (\S+) of 24\.0 GB \(a faster way would take (\S+)\)", fit.reason())
    assert found
    takes, instead = map(float, found.groups())
    assert takes <= 24 <= instead
    assert fit_into(140 * GB, FULL, load_of(1), INT8).reason().endswith("of 140.0 GB")


def test_the_words_name_one_block_and_several() -> None:
    one, two = (Fit(Recomputation(), streamed=number).words(blocks=3) for number in (1, 2))
    assert "the weights of 1 block are in host RAM" in one
    assert "the weights of 2 blocks are in host RAM" in two


def test_the_words_say_of_how_many_blocks_attention_is_kept() -> None:
    some, every = (Fit(Recomputation(kept=1, attention=n)).words(blocks=3) for n in (1, 2))
    assert some.endswith(
        "2 of 3 blocks are computed again in the backward, the attention of 1 of them aside"
    )
    assert every.endswith("computed again in the backward, their attention aside")


def test_more_streamed_blocks_than_there_are_is_told_as_all_of_them() -> None:
    told = Fit(Recomputation(), streamed=99).words(blocks=3)
    assert "the weights of 3 blocks" in told
    assert "99" not in told
