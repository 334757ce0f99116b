"""The modulation table: training is the same with and without it, to the bit, and lighter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip
from quiet import Quiet
from tiny_transformer import made_transformer
from torch import Tensor
from training import lora, train

from qedit.cache.errors import Damaged
from qedit.config.loading import Configuration
from qedit.stages.cache_base import stage as cache_base
from qedit.stages.cache_base import table
from qedit.stages.frozen_base import modulation_rows
from qedit.stages.frozen_base.modulation_table import base_folder, modulation_table
from qedit.stages.frozen_base.quantized import has_work
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.layers import PRESETS, trains_modulation
from qedit.stages.models.timesteps import every_timestep, row_key, row_shape, spared_bytes
from qedit.stages.models.transformer import modulation
from qedit.stages.models.transformer.modulation import bits_of, tabulate
from qedit.stages.stores.run import Run
from qedit.stages.train import loop, model
from qedit.stages.train.model import remarks
from qedit.stages.train.plan.training_plan import Plan, make_plan

CPU = torch.device("cpu")
STEPS = range(1, 3)
# flavour -> a copy of the table that was made for it
_tables: dict[str, Path] = {}


@pytest.fixture
def made(made: Any) -> Callable[..., Configuration]:
    """Runs in bfloat16 without a table yet, whatever other tests have made."""

    def make(**settings: Any) -> Configuration:
        configuration: Configuration = made(**{"mixed_precision": "bf16", **settings})
        return configuration

    shutil.rmtree(base_folder(make().settings), ignore_errors=True)
    return make


def cached(configuration: Configuration, **options: Any) -> Any:
    return cache_base.run(Run(configuration), Quiet(), device="cpu", **options)


def with_table(configuration: Configuration) -> None:
    """Have a whole table, which is made once for each flavour."""
    flavour, where = configuration.settings.model_flavour, base_folder(configuration.settings)
    if flavour in _tables:
        shutil.copytree(_tables[flavour], where, dirs_exist_ok=True)
    else:
        cached(configuration)
        _tables[flavour] = shutil.copytree(where, where.with_name("tables"))


def opened(plan: Plan) -> loop.Trainer:
    """The model as training has it, every trained weight with a value as if trained."""
    trainer = loop.Trainer.load(plan, device=CPU)
    generator = torch.Generator().manual_seed(1)
    for weight in trainer.trained.weights.values():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return trainer


def is_tabulated(trainer: loop.Trainer) -> bool:
    return any(isinstance(m, modulation.TabulatedLayer) for m in trainer.transformer.modules())


def losses_and_gradients(trainer: loop.Trainer, plan: Plan) -> list[Tensor]:
    """The losses of every batch of STEPS, and then all gradients."""
    found = []
    for step in STEPS:
        for batch in plan.feed.step(step):
            losses = trainer.objective.losses(trainer.transformer, batch)
            torch.autograd.backward(losses.sum())
            found.append(losses.detach())
    for weight in trainer.trained.weights.values():
        assert weight.grad is not None
        found.append(weight.grad)
    return found


# -- the same to the bit ---------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["edit-v1", "edit-v2", "edit-v2+", "edit-v3"])
def test_losses_and_gradients_are_the_same_to_the_bit(made: Any, flavour: str) -> None:
    shutil.rmtree(base_folder(made(flavour=flavour).settings), ignore_errors=True)
    configuration = made(flavour=flavour, lora_target_modules="all-linear", use_ema=False)
    plan = make_plan(configuration)
    assert configuration.settings.gradient_checkpointing
    sigmas = {float(s) for step in STEPS for batch in plan.feed.step(step) for s in batch.sigma}
    assert len(sigmas) == 2 * len(STEPS)  # batches of two, a noise level for each sample
    plain = opened(plan)
    assert cached(configuration).computed > 1000
    tabulated = opened(plan)
    assert (is_tabulated(plain), is_tabulated(tabulated)) == (False, True)
    expected, found = (losses_and_gradients(one, plan) for one in (plain, tabulated))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert all(float(one.abs().sum()) > 0 for one in expected)


def test_two_forwards_before_a_backward_keep_their_own_rows(made: Any) -> None:
    configuration = made()
    plan = make_plan(configuration)
    gradients = []
    for _ in range(2):
        trainer = opened(plan)
        (first,), (second,) = plan.feed.step(1), plan.feed.step(2)
        one = trainer.objective.losses(trainer.transformer, first).sum()
        other = trainer.objective.losses(trainer.transformer, second).sum()
        torch.autograd.backward(one - 2 * other)
        gradients.append([weight.grad for weight in trainer.trained.weights.values()])
        with_table(configuration)
    assert is_tabulated(trainer)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# batches of two shapes, low sigmas, rollouts of several lengths
HARD: dict[str, Any] = {
    "train_batch_size": 5,
    "max_train_steps": 4,
    "flow_schedule_shift": 0.2,
    "lora_dropout": 0.2,
    "scheduled_sampling_max_step_offset": 3,
    "scheduled_sampling_probability": 0.7,
    "scheduled_sampling_reflexflow": True,
}


@pytest.mark.parametrize("flavour", ["edit-v1", "edit-v3"])
def test_a_whole_run_is_the_same_with_a_table_made_half_way(
    made: Any, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**HARD, "flavour": flavour}
    shutil.rmtree(base_folder(made(flavour=flavour).settings), ignore_errors=True)
    whole, pieces = made(output="whole", **settings), made(output="pieces", **settings)
    train(whole)
    train(made(output="pieces", **{**settings, "max_train_steps": 2}))
    with_table(pieces)
    # from now on no row may be computed
    monkeypatch.setattr(modulation_rows, "ModulationWeights", lambda *args: 1 / 0)
    assert train(pieces).kept == 2
    one, other = lora(whole), lora(pieces)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("flavour", ["edit-v2", "edit-v3"])
def test_a_step_never_waits_for_its_device(made: Any, flavour: str) -> None:
    """On a device whose numbers nobody can look at: rows, rollouts, masks, joined shapes."""
    shutil.rmtree(base_folder(made(flavour=flavour).settings), ignore_errors=True)
    configuration = made(flavour=flavour, gradient_checkpointing=False, **HARD)
    with_table(configuration)
    plan = make_plan(configuration)
    nowhere = torch.device("meta")
    trainer = opened(plan)
    assert is_tabulated(trainer)
    objective = replace(trainer.objective, device=nowhere)
    transformer = trainer.transformer.to(nowhere)
    (batch, *others) = plan.feed.step(2)
    assert batch.rollouts
    height, width = batch.target.shape[-2:]
    masked = replace(batch, weights=torch.ones(len(batch), 1, height, width))
    joined = [masked, *(replace(other, joins=True) for other in others)]
    losses = objective.backward(transformer, joined, step=2)
    assert losses.values.is_meta
    assert any(weight.grad is not None for weight in transformer.parameters())


# -- which timesteps -------------------------------------------------------------------------


def test_a_rarer_timestep_is_computed_when_it_is_asked_for(made: Any) -> None:
    configuration = made()
    with_table(configuration)
    checkpoint = open_checkpoint(configuration.settings)
    rare = bits_of(torch.tensor([1e-5]).to(torch.bfloat16))[0]
    rows = loop_rows(configuration)
    assert row_key(rare) not in modulation_table(checkpoint, configuration.settings)
    expected = modulation.ModulationWeights(checkpoint.transformer, remember=None).rows([rare])[0]
    assert torch.equal(rows(rare), expected)
    assert rows(rare) is rows(rare)


def loop_rows(configuration: Configuration) -> Any:
    from qedit.stages.frozen_base.modulation_rows import ModulationRows

    checkpoint = open_checkpoint(configuration.settings)
    table = modulation_table(checkpoint, configuration.settings)
    return ModulationRows(table, checkpoint)


def test_wide_draws_get_more_rows(made: Any) -> None:
    narrow = cached(made(), dry_run=True).wanted
    # octaves of 128 values below 2**-10: down to 2**-16, and to the sigmoid of 2 x -4.17
    for octaves, wide in ((6, {"flow_use_uniform_schedule": True}), (2, {"flow_sigmoid_scale": 2})):
        more = cached(made(**wide), dry_run=True).wanted - narrow
        assert 120 * octaves <= more <= 128 * (octaves + 1)


# -- when there is one -----------------------------------------------------------------------


def test_a_second_run_finds_all_rows_and_a_dry_run_writes_nothing(made: Any) -> None:
    configuration = made()
    foreseen = cached(configuration, dry_run=True)
    assert not base_folder(configuration.settings).exists()
    assert foreseen.facts["missing"] == foreseen.wanted
    assert cached(configuration).computed == foreseen.wanted
    again = cached(configuration)
    assert (again.kept, again.computed) == (foreseen.wanted, 0)
    wider = cached(made(flow_use_uniform_schedule=True))
    assert wider.kept == foreseen.wanted
    assert wider.computed > 0


def test_flavours_on_one_checkpoint_share_the_table(made: Any) -> None:
    cached(made(flavour="edit-v2"))
    settings = made(flavour="edit-v2").settings.model_copy(update={"model_flavour": "edit-v2+"})
    plus = Configuration(settings, made(flavour="edit-v2").datasets)
    assert cached(plus).computed == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "no"},
        {"lora_target_modules": "all-linear+modulation"},
        {"model_type": "full", "lora_target_modules": ["to_q"]},
    ],
    ids=["float32", "modulation is trained", "the whole model is saved"],
)
def test_no_table_where_it_cannot_be_used(made: Any, settings: Any) -> None:
    with_table(made())
    outcome = cached(made(**settings))
    assert (outcome.wanted, has_work(made(**settings).settings)) == (0, False)
    assert not is_tabulated(opened(make_plan(made(**settings))))


def test_the_layers_that_reach_modulation() -> None:
    reaching = {name for name in PRESETS if trains_modulation(name)}
    assert reaching == {"all-linear+modulation"}
    assert trains_modulation(["to_q", "img_mod.1"])
    assert trains_modulation(["transformer_blocks.1.txt_mod.1"])
    assert trains_modulation(["norm_out.linear"])
    assert trains_modulation(["linear_1"])
    assert not trains_modulation(["to_q", "proj_out", "img_mlp.net.0.proj"])


def test_the_weights_are_neither_held_nor_read(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = made()
    with_table(configuration)
    plan = make_plan(configuration)
    read = []
    real = model.fill

    def seeing(transformer: Any, tensors: Any, **options: Any) -> Any:
        def each() -> Any:
            for name, tensor in tensors:
                read.append(name)
                yield name, tensor

        return real(transformer, each(), **options)

    monkeypatch.setattr(model, "fill", seeing)
    trainer = loop.Trainer.load(plan, device=CPU)
    assert read
    assert not [name for name in read if "_mod." in name or "time_" in name or "norm_out" in name]
    held = {name for name, _ in trainer.transformer.named_parameters() if "lora_" not in name}
    assert {name.replace(".base_layer", "") for name in held} == set(read)


def test_damage_is_found_when_a_row_is_read(made: Any) -> None:
    configuration = made()
    cached(configuration)  # files that nobody has open yet
    store = modulation_table(open_checkpoint(configuration.settings), configuration.settings)
    (shard,) = store.path.glob("parts/*/modulation/c.0.0.0")
    flip(shard, 100)
    rows = loop_rows(configuration)
    found = []
    for bits in every_timestep(lowest_sigma=0.001):
        try:
            rows(bits)
        except Damaged as error:
            found.append(error.what)
    assert len(found) == 1
    assert "checksum" in found[0]


def test_a_kill_between_parts_costs_the_unfinished_part_alone(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = made()
    foreseen = cached(configuration, dry_run=True)
    row_bytes = foreseen.facts["bytes"] // foreseen.wanted
    monkeypatch.setattr(table, "PASS_BYTES", 300 * row_bytes)
    real, calls = modulation.ModulationWeights.rows, []

    def killed(self: Any, timesteps: Any, *rest: Any) -> Any:
        calls.append(len(timesteps))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, timesteps, *rest)

    monkeypatch.setattr(modulation.ModulationWeights, "rows", killed)
    with pytest.raises(KeyboardInterrupt):
        cached(configuration)
    monkeypatch.setattr(modulation.ModulationWeights, "rows", real)
    rest = cached(configuration)
    assert rest.kept == calls[0] + calls[1] > 0
    assert rest.computed == rest.wanted - rest.kept


# -- sizes -----------------------------------------------------------------------------------


def test_what_is_spared_is_what_the_modules_hold() -> None:
    transformer = made_transformer(layers=3)
    before = sum(parameter.numel() for parameter in transformer.parameters())
    tabulate(transformer, lambda bits: torch.zeros(1, 1, dtype=torch.bfloat16))
    after = sum(parameter.numel() for parameter in transformer.parameters())
    assert 2 * (before - after) == spared_bytes(blocks=3, width=32)


def test_sizes_at_full_scale() -> None:
    layers, channels = row_shape(blocks=60, width=3072)
    assert 2 * layers * channels == pytest.approx(4.42e6, rel=0.01)  # 60 x 2 x 18432 bfloat16
    assert spared_bytes(blocks=60, width=3072) == pytest.approx(2 * 6.79e9, rel=0.01)


# -- what is said ----------------------------------------------------------------------------


def test_training_says_what_a_table_would_spare_and_what_trained_modulation_costs(
    made: Any,
) -> None:
    def said(**settings: Any) -> str:
        return "\n".join(remarks(make_plan(made(**settings))))

    assert "`qedit cache-base`" in said()
    assert "its weights stay" in said(lora_target_modules="all-linear+modulation")
    exact = said(mixed_precision="no")
    assert "cache-base" not in exact
    assert "weights stay" not in exact
    with_table(made())
    assert "cache-base" not in said()


def test_a_run_says_it(made: Any) -> None:
    quiet = Quiet()
    loop.run(made(max_train_steps=1, use_ema=False), quiet, device="cpu")
    assert any("`qedit cache-base`" in line for line in quiet.said)
