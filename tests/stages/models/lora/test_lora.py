"""LoRA: which layers, and exact starts."""

from __future__ import annotations

import pytest
import torch
from tiny_transformer import made_transformer, one_forward, randomize
from torch import nn

from qedit.cache.errors import WrongUse
from qedit.config.schedules import SCHEDULE_OPTIONS
from qedit.stages.models.layers import PRESETS
from qedit.stages.models.learning_rate import learning_rate_schedule
from qedit.stages.models.lora.lora import add_lora, target_modules

# -- targets -----------------------------------------------------------------------------


def test_the_default_preset_is_the_image_streams_attention() -> None:
    targets = target_modules(made_transformer(), "attention")
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    assert sorted(targets) == sorted(
        f"transformer_blocks.{block}.attn.{end}" for block in (0, 1) for end in ends
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_layer_of_a_preset_learns_in_every_block(preset: str) -> None:
    transformer = made_transformer()
    weights = add_lora(transformer, target_modules(transformer, preset), rank=2, alpha=2.0)
    randomize(weights)
    one_forward(transformer).square().sum().backward()
    idle = [
        name
        for name, weight in weights.items()
        if weight.grad is None or not bool(weight.grad.abs().sum() > 0)
    ]
    assert not idle
    assert any("transformer_blocks.1." in name for name in weights)


def test_only_the_layers_that_nothing_sees_are_left_out() -> None:
    """With all linear layers of the blocks trained by hand, exactly those get no gradient."""
    transformer = made_transformer()
    one_forward(transformer).square().sum().backward()
    idle = {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("transformer_blocks.")
        and (module.weight.grad is None or not bool(module.weight.grad.abs().sum() > 0))
    }
    linears = {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks.")
    }
    assert linears - set(target_modules(transformer, "all-linear+modulation")) == idle
    assert len(idle) == 4


def test_a_list_of_names_is_matched_as_peft_does() -> None:
    transformer = made_transformer()
    assert target_modules(transformer, ["to_q", "transformer_blocks.1.img_mlp.net.2"]) == [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.attn.to_q",
        "transformer_blocks.1.img_mlp.net.2",
    ]
    assert target_modules(transformer, ["proj_out"]) == ["proj_out"]


def test_an_unknown_layer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(WrongUse, match=r"to_qq.*attn\.to_q"):
        target_modules(made_transformer(), ["attn.to_qq"])


def test_a_layer_that_never_learns_is_refused_as_such() -> None:
    for name in ("transformer_blocks.1.attn.to_add_out", "1.attn.add_q_proj"):
        with pytest.raises(WrongUse, match=f"{name} never learns"):
            target_modules(made_transformer(), ["to_q", name])
    first = "transformer_blocks.0.attn.add_q_proj"
    assert target_modules(made_transformer(), ["attn.add_q_proj"]) == [first]


# -- starts ------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_a_fresh_lora_changes_nothing_and_the_seed_decides_it(init: str) -> None:
    transformer = made_transformer()
    before = one_forward(transformer)
    state = torch.random.get_rng_state()
    weights = add_lora(
        transformer, target_modules(transformer, "attention"), rank=4, alpha=8.0, init=init, seed=3
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one_forward(transformer), before)
    starts = []
    for seed in (3, 4):
        other = made_transformer()
        targets = target_modules(other, "attention")
        starts.append(add_lora(other, targets, rank=4, alpha=8.0, init=init, seed=seed))
    assert all(torch.equal(starts[0][name], weights[name]) for name in weights)
    assert not all(torch.equal(starts[1][name], weights[name]) for name in weights)


def test_the_two_inits_are_what_they_are_called() -> None:
    spreads = {}
    for init in ("default", "gaussian"):
        transformer = made_transformer()
        weights = add_lora(transformer, ["proj_out"], rank=16, alpha=16.0, init=init)
        spreads[init] = weights["proj_out.lora_A.weight"]
    width = spreads["default"].shape[1]
    assert spreads["default"].abs().max() <= width**-0.5  # uniform within 1/sqrt(fan in)
    assert spreads["gaussian"].std().item() == pytest.approx(1 / 16, rel=0.1)


def test_lora_weights_are_float32_on_a_bfloat16_base() -> None:
    transformer = made_transformer().to(torch.bfloat16)
    weights = add_lora(transformer, target_modules(transformer, "attention"), rank=2, alpha=2.0)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert {weight.dtype for weight in transformer.parameters() if not weight.requires_grad} == {
        torch.bfloat16
    }
    randomize(weights)
    assert one_forward(transformer).dtype == torch.bfloat16


def test_dropout_works_only_while_training() -> None:
    transformer = made_transformer()
    weights = add_lora(
        transformer, target_modules(transformer, "attention"), rank=2, alpha=2.0, dropout=0.5
    )
    randomize(weights)
    transformer.eval()
    assert torch.equal(one_forward(transformer), one_forward(transformer))
    transformer.train()
    assert not torch.equal(one_forward(transformer), one_forward(transformer))


# -- learning rates ----------------------------------------------------------------------


def test_schedules_follow_their_closed_forms() -> None:
    constant = learning_rate_schedule("constant", 0.1, steps=10)
    assert [constant(step) for step in (1, 5, 10)] == [0.1, 0.1, 0.1]
    warm = learning_rate_schedule("constant", 0.1, steps=10, warmup_steps=4)
    assert [warm(step) for step in (1, 2, 5, 10)] == pytest.approx([0.0, 0.025, 0.1, 0.1])
    linear = learning_rate_schedule("linear", 0.1, steps=10, warmup_steps=2)
    assert [linear(step) for step in (2, 3, 7)] == pytest.approx([0.05, 0.1, 0.05])
    cosine = learning_rate_schedule("cosine", 0.1, steps=8)
    assert [cosine(step) for step in (1, 5)] == pytest.approx([0.1, 0.05])
    restarts = learning_rate_schedule(
        "cosine_with_restarts", 0.1, steps=8, config={"num_cycles": 2}
    )
    assert [restarts(step) for step in (1, 3, 5)] == pytest.approx([0.1, 0.05, 0.1])
    power = learning_rate_schedule("polynomial", 0.1, steps=10, config={"power": 2.0})
    assert power(6) == pytest.approx(0.1 * 0.25, abs=1e-6)
    rules = learning_rate_schedule(
        "piecewise_constant", 0.1, steps=10, config={"step_rules": "1:4,0.5"}
    )
    assert [rules(step) for step in (4, 6)] == pytest.approx([0.1, 0.05])
    warm = learning_rate_schedule(
        "piecewise_constant", 0.1, steps=10, warmup_steps=8, config={"step_rules": "1:4,0.5"}
    )
    assert [warm(step) for step in (1, 3, 5, 9)] == pytest.approx([0.0, 0.025, 0.025, 0.05])
    ended = learning_rate_schedule("polynomial", 0.1, steps=10, config={"lr_end": 0.02})
    assert [ended(step) for step in (1, 6, 11)] == pytest.approx([0.1, 0.06, 0.02])


def test_unknown_schedules_and_options_are_refused() -> None:
    with pytest.raises(WrongUse, match="cosinus"):
        learning_rate_schedule("cosinus", 0.1, steps=10)
    with pytest.raises(WrongUse, match="cycles"):
        learning_rate_schedule("cosine", 0.1, steps=10, config={"cycles": 2})


def test_schedules_take_the_options_that_diffusers_gives_them() -> None:
    """All of them, but for those of cosine, linear and what is written in code."""
    import inspect

    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    assert {kind.value for kind in SchedulerType} == SCHEDULE_OPTIONS.keys()
    for name, options in SCHEDULE_OPTIONS.items():
        takes = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters
        assert set(options) <= set(takes)
