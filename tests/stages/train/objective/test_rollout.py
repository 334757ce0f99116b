"""Scheduled sampling and ReflexFlow: a rollout by hand, and runs that use it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from filled_run import made_samples_with_edits
from samples import made_picture, made_sample
from tiny_transformer import TEXT_WIDTH, made_transformer, randomize
from torch import Tensor, nn
from training import lora, metrics, train

from qedit.stages.models.transformer.transformer import predict_velocity
from qedit.stages.train.data.feed import Batch
from qedit.stages.train.data.scheduled_sampling import Reflex, Rollouts
from qedit.stages.train.objective.step import Objective
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.trainer import Trainer

ON = {
    "scheduled_sampling_max_step_offset": 3,
    "scheduled_sampling_probability": 0.6,
    "scheduled_sampling_reflexflow": True,
}


# -- a rollout by hand -----------------------------------------------------------------------


def batches() -> list[Batch]:
    """Two shapes in one forward; of five samples three are rolled out, by 1, 4 and 2 steps."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def batch(
        first: int, sizes: list[tuple[int, int]], lengths: tuple[int, ...], **more: Any
    ) -> Batch:
        count = len(lengths)
        target, *references = [random(count, 16, *size) for size in sizes]
        return Batch(
            first_position=first,
            names=tuple(f"{first + place}" for place in range(count)),
            captions=("it",) * count,
            target=target,
            references=tuple(references),
            embeds=random(count, max(lengths), TEXT_WIDTH),
            text_lengths=lengths,
            noise=random(*target.shape),
            sigma=0.2 + 0.6 * torch.rand(count, generator=generator),
            **more,
        )

    return [
        batch(0, [(4, 8), (8, 4)], (5, 9, 7), rollouts=(1, 0, 4)),
        batch(3, [(8, 4), (4, 4), (4, 4)], (6, 3), rollouts=(0, 2), joins=True),
    ]


def by_hand(
    transformer: nn.Module, batch: Batch, row: int, *, alpha: float, beta1: float, beta2: float
) -> Tensor:
    """One sample's loss, alone, with Euler steps and ReflexFlow."""
    clean, noise, sigma = batch.target[row], batch.noise[row], float(batch.sigma[row])

    def velocity(state: Tensor, at: float) -> Tensor:
        return predict_velocity(
            transformer,
            state[None],
            [reference[row : row + 1] for reference in batch.references],
            batch.embeds[row : row + 1, : batch.text_lengths[row]],
            mask=None,
            sigma=torch.tensor([at]),
        )[0]

    # without a mask everything counts alike, and a sum of weights is a mean
    weights = torch.ones(1, *clean.shape[1:]) if batch.weights is None else batch.weights[row]

    def mean(pointwise: Tensor) -> Tensor:
        return (weights * pointwise).sum() / (weights.sum() * len(clean))

    steps = batch.rollouts[row]
    at = sigma + steps / 1000
    state = (1 - at) * clean + at * noise
    with torch.no_grad():
        for step in range(steps):
            state = state - velocity(state, at - step / 1000) / 1000
    predicted = velocity(state, sigma)
    error = (predicted - (noise - clean)).square()
    if not steps:
        return mean(error)
    with torch.no_grad():
        lost = velocity((1 - sigma) * clean + sigma * noise, sigma) - predicted
    weighted = (1 + alpha * lost / lost.abs().sum()) * error
    way = state - clean
    predicted, way = (one * weights.sqrt() for one in (predicted, way))
    distance = (predicted / predicted.norm() - way / way.norm()).square().sum()
    return beta2 * mean(weighted) + beta1 * distance


def masked(batch: Batch, *, seed: int) -> Batch:
    """With a mask of zeros, ones and what is between, of its own for each sample."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(batch), 1, *batch.target.shape[2:], generator=generator)
    return replace(batch, weights=(2 * weights - 0.5).clamp(0, 1))


@pytest.mark.parametrize("has_mask", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["v2", "v3"])
def test_losses_and_gradients_are_those_of_rollouts_by_hand(
    zero_cond_t: bool, has_mask: bool
) -> None:
    transformer = made_transformer(zero_cond_t=zero_cond_t).train()
    given = [masked(one, seed=seed) for seed, one in enumerate(batches())]
    given = given if has_mask else batches()
    # alpha so large that its part shows beside the sum over a sample
    reflex = {"alpha": 300.0, "beta1": 3.0, "beta2": 0.5}
    rollouts = Rollouts(4, probability=1.0, sampler="euler", reflex=Reflex(**reflex))
    objective = Objective(
        dtype=torch.float32, device=torch.device("cpu"), seed=1, rollouts=rollouts
    )
    weight = transformer.transformer_blocks[0].attn.to_q.weight
    losses = objective.backward(transformer, given, step=1)
    found, weight.grad = weight.grad, None
    expected = torch.stack(
        [by_hand(transformer, batch, row, **reflex) for batch in given for row in range(len(batch))]
    )
    expected.mean().backward()
    torch.testing.assert_close(losses.values, expected.detach(), rtol=1e-4, atol=1e-5)
    assert (found - weight.grad).norm() < 1e-4 * found.norm()
    assert transformer.training


def test_each_sample_is_computed_only_while_it_moves() -> None:
    transformer = made_transformer()
    objective = Objective(
        dtype=torch.float32, device=torch.device("cpu"), rollouts=Rollouts(4, sampler="unipc")
    )
    rows: list[int] = []
    transformer.register_forward_pre_hook(
        lambda module, args, named: rows.append(len(named["hidden_states"])), with_kwargs=True
    )
    objective.backward(transformer, batches(), step=1)
    assert rows == [3, 2, 1, 1, 5]


def test_what_is_measured_is_never_rolled_out() -> None:
    transformer = made_transformer()
    rolling = Objective(
        dtype=torch.float32, device=torch.device("cpu"), rollouts=Rollouts(4, probability=1.0)
    )
    for batch in batches():
        plain = replace(rolling, rollouts=None).losses(transformer, replace(batch, rollouts=()))
        assert torch.equal(rolling.losses(transformer, batch), plain)


# -- runs ------------------------------------------------------------------------------------


def test_a_run_that_never_rolls_out_is_the_run_without(made: Any) -> None:
    """The ramp begins after its last step, so everything is in place and nothing happens."""
    never = {"scheduled_sampling_ramp_steps": 10, "scheduled_sampling_start_step": 99}
    runs = [
        made(output="without", max_train_steps=3),
        made(output="never", max_train_steps=3, **{**ON, **never}),
        made(output="on", max_train_steps=3, **ON),
    ]
    for configuration in runs:
        train(configuration)
    losses = [[line["loss"] for line in metrics(configuration)] for configuration in runs]
    assert losses[0] == losses[1] != losses[2]
    weights = [lora(configuration) for configuration in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_processes_that_share_a_step_are_one_process(made: Any) -> None:
    """With rollouts, dropout, and references that are drawn."""
    samples = made_samples_with_edits(3, sizes=[(64, 64), (64, 96)])
    turns = [
        replace(
            made_sample(f"turns-{target}.png", captions=("keep it",)),
            references=(
                made_picture(name, dataset="edits-before-0", size=(64, 64), vl_size=(28, 28)),
            ),
            group=f"turns-{target}.png",
        )
        for target in range(3)
        for name in ("one.png", "two.png")
    ]
    settings = {**ON, "scheduled_sampling_probability": 0.7, "lora_dropout": 0.3}
    plan = make_plan(
        made([*samples, *turns], train_batch_size=4, gradient_accumulation_steps=2, **settings)
    )
    trainer = Trainer.load(plan, device=torch.device("cpu"))
    randomize(trainer.trained.weights)

    def of_step(step: int, world: int) -> tuple[float, Tensor, list[str]]:
        loss, names = 0.0, []
        for rank in range(world):
            batches = replace(plan.feed, rank=rank, world=world).step(step)
            names += [name for batch in batches for name in batch.names]
            loss += trainer.objective.backward(
                trainer.transformer, batches, step=step, of_samples=plan.feed.samples_in(step)
            ).mean
        weights = trainer.trained.weights.values()
        gradient = torch.cat(
            [weight.grad.flatten() for weight in weights if weight.grad is not None]
        )
        for weight in weights:
            weight.grad = None
        return loss, gradient, names

    rolled = 0
    for step in (1, 2, 3):
        rolled += sum(sum(batch.rollouts) for batch in plan.feed.step(step))
        loss, gradient, names = of_step(step, 1)
        for world in (2, 3):
            other, of_shares, of_samples = of_step(step, world)
            assert of_samples == names
            assert other == pytest.approx(loss, rel=1e-5)
            assert (of_shares - gradient).norm() < 1e-5 * gradient.norm()
    assert rolled


def test_a_resumed_run_rolls_out_as_an_uninterrupted_one(made: Any) -> None:
    whole = made(output="whole", lora_dropout=0.2, max_train_steps=3, **ON)
    train(whole)
    for steps in (1, 3):
        halves = made(output="halves", lora_dropout=0.2, max_train_steps=steps, **ON)
        train(halves)
    one, other = lora(whole), lora(halves)
    assert all(torch.equal(one[name], other[name]) for name in one)
