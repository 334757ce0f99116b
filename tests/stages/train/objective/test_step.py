"""One optimizer step: its loss and its gradient, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from filled_run import made_samples_with_edits
from tiny_transformer import randomize

from qedit.stages.samples.sample import Sample
from qedit.stages.stores.bfloat16 import tensor_of
from qedit.stages.train import loop
from qedit.stages.train.data.feed import Batch
from qedit.stages.train.plan.training_plan import make_plan


def plain_loss(
    transformer: torch.nn.Module, batches: list[Batch], stores: Any, samples: dict[str, Sample]
) -> torch.Tensor:
    """The mean loss over the samples of a step, one by one, from first principles."""
    losses = []
    for batch in batches:
        for place, name in enumerate(batch.names):
            sample = samples[name]
            picture, before = sample.target, sample.references[0]
            x0 = tensor_of(stores.latents.read(picture.latent_key, dataset="edits")).float()
            reference = tensor_of(
                stores.latents.read(before.latent_key, dataset=before.dataset)
            ).float()
            text = torch.cat(
                [
                    tensor_of(stores.prefixes.read(sample.prefix_key, dataset="edits")),
                    tensor_of(
                        stores.tails.read(sample.tail_key(batch.captions[place]), dataset="edits")
                    ),
                ]
            ).float()
            sigma, eps = batch.sigma[place], batch.noise[place]
            channels, height, width = x0.shape
            tokens = []
            for latents in ((1 - sigma) * x0 + sigma * eps, reference):
                for row in range(0, latents.shape[1], 2):
                    for column in range(0, latents.shape[2], 2):
                        tokens.append(latents[:, row : row + 2, column : column + 2].reshape(-1))
            shape = (1, height // 2, width // 2)
            output = transformer(
                hidden_states=torch.stack(tokens)[None],
                encoder_hidden_states=text[None],
                timestep=sigma[None] * 1000 / 1000,
                img_shapes=[[shape, (1, *(edge // 2 for edge in reference.shape[1:]))]],
                return_dict=False,
            )[0][0]
            velocity = torch.empty_like(x0)
            for place_in_picture in range(height // 2 * (width // 2)):
                row, column = divmod(place_in_picture, width // 2)
                velocity[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = output[
                    place_in_picture
                ].view(channels, 2, 2)
            losses.append((velocity - (eps - x0)).square().mean())
    return torch.stack(losses).mean()


def gradients(weights: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat(
        [weight.grad.flatten() for weight in weights.values() if weight.grad is not None]
    )


def assert_plain(
    loss: float,
    trainer: loop.Trainer,
    batches: list[Batch],
    stores: Any,
    samples: list[Sample],
    *,
    close: float,
) -> None:
    """The loss of a step and the gradients that it left are those of a plain computation."""
    weights = trainer.trained.weights
    ours = gradients(weights)
    for weight in weights.values():
        weight.grad = None
    by_name = {sample.name: sample for sample in samples}
    plain = plain_loss(trainer.transformer, batches, stores, by_name)
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    assert (ours - gradients(weights)).norm() < close * ours.norm()


@pytest.mark.parametrize("flavour", ["edit-v2", "edit-v3"])
def test_a_steps_loss_and_gradient_are_those_of_a_plain_computation(
    made: Any, flavour: str
) -> None:
    """Short last batches and accumulation included: every sample weighs the same."""
    samples = made_samples_with_edits(7, sizes=[(64, 64), (64, 96)])
    configuration = made(
        samples, flavour=flavour, train_batch_size=3, gradient_accumulation_steps=4
    )
    plan = make_plan(configuration)
    batches = plan.feed.step(1)
    # four of one shape and three of the other, in batches of three; then the next epoch's first
    assert sorted(len(batch) for batch in batches[:3]) == [1, 3, 3]
    assert any(len({*batch.text_lengths}) > 1 for batch in batches), "texts of two lengths"
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    weights = trainer.trained.weights
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    loss = trainer.objective.backward(trainer.transformer, batches, step=1).mean
    assert_plain(loss, trainer, batches, plan.feed.stores, samples, close=1e-4)


def test_a_step_of_joined_shapes_is_that_of_a_plain_computation(made: Any) -> None:
    samples = made_samples_with_edits(6, sizes=[(64, 64), (32, 128), (128, 32)])
    plan = make_plan(made(samples, flavour="edit-v3", train_batch_size=6))
    batches = plan.feed.step(1)
    assert [batch.joins for batch in batches] == [False, True, True]
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    weights = trainer.trained.weights
    randomize(weights)
    calls = []
    trainer.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = trainer.objective.backward(trainer.transformer, batches, step=1).mean
    assert len(calls) == 1
    assert_plain(loss, trainer, batches, plan.feed.stores, samples, close=1e-5)


def test_losses_are_told_by_sigma_and_add_up_over_processes(made: Any) -> None:
    plan = make_plan(made(train_batch_size=4, gradient_accumulation_steps=2))
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    batches = plan.feed.step(1)
    whole = trainer.objective.backward(trainer.transformer, batches, step=1)
    found = {}
    for band in range(4):
        inside = (whole.sigma >= band / 4) & (whole.sigma < (band + 1) / 4)
        if inside.any():
            found[f"{band / 4:.2f}"] = pytest.approx(whole.values[inside].mean().item())
    assert whole.by_sigma == found
    ours = gradients(trainer.trained.weights)
    for weight in trainer.trained.weights.values():
        weight.grad = None
    parts = [
        trainer.objective.backward(
            trainer.transformer,
            replace(plan.feed, rank=rank, world=3).step(1),
            step=1,
            of_samples=plan.feed.samples_in(1),
        )
        for rank in range(3)
    ]
    assert sum(part.mean for part in parts) == pytest.approx(whole.mean)
    assert (ours - gradients(trainer.trained.weights)).norm() < 1e-5 * ours.norm()


def test_a_mask_changes_what_is_learnt(made: Any) -> None:
    plan = make_plan(made(train_batch_size=4))
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    (batch, *_) = plan.feed.step(1)
    with torch.no_grad():
        plain = trainer.objective.losses(trainer.transformer, batch)
        height, width = batch.target.shape[-2:]
        left = torch.zeros(len(batch), 1, height, width)
        left[..., : width // 2] = 1
        masked = trainer.objective.losses(trainer.transformer, replace(batch, weights=left))
        other = trainer.objective.losses(trainer.transformer, replace(batch, weights=1 - left))
    torch.testing.assert_close((masked + other) / 2, plain)
    assert (masked - plain).abs().min() > 0


def test_the_transformer_is_conditioned_on_the_rounded_sigma(made: Any) -> None:
    plan = make_plan(made(mixed_precision="bf16"))
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    seen = []
    trainer.transformer.register_forward_pre_hook(
        lambda module, args, named: seen.append(named), with_kwargs=True
    )
    (batch,) = plan.feed.step(1)
    trainer.objective.losses(trainer.transformer, batch)
    expected = (batch.sigma * 1000).to(torch.bfloat16) / 1000
    assert torch.equal(seen[0]["timestep"], expected)
    exact = (1 - batch.sigma)[:, None, None, None] * batch.target.float() + batch.sigma[
        :, None, None, None
    ] * batch.noise
    tokens = batch.target.shape[-1] * batch.target.shape[-2] // 4
    first = exact.to(torch.bfloat16)[:, :, :2, :2].flatten(1)
    assert torch.equal(seen[0]["hidden_states"][:, 0], first)
    assert seen[0]["hidden_states"].shape[1] == 2 * tokens


def test_gradient_checkpointing_changes_no_bit(made: Any) -> None:
    found, forwards = [], []
    for on in (True, False):
        plan = make_plan(made(gradient_checkpointing=on, lora_dropout=0.3))
        trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
        calls: list[int] = []
        block = trainer.transformer.get_submodule("transformer_blocks.0")
        block.attn.to_q.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append([trainer.step(step, plan.feed.step(step))["loss"] for step in (1, 2, 3)])
        forwards.append(len(calls))
    assert found[0] == found[1]
    assert forwards == [6, 3]  # each once more in the backward


@pytest.mark.parametrize("on", [True, False], ids=["recomputed", "kept"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_that_of_each_sample_however_a_step_is_divided(
    made: Any, kind: str, on: bool
) -> None:
    """One process, two, and a sample at a time: shapes and texts of several lengths."""
    samples = made_samples_with_edits(4, sizes=[(64, 64), (32, 128)])
    settings = {"lora_dropout": 0.5, "lora_type": kind, "gradient_checkpointing": on}
    targets = {"lora_target_modules": "all-linear+modulation", "flavour": "edit-v3"}
    plan = make_plan(made(samples, train_batch_size=4, **settings, **targets))
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    randomize(trainer.trained.weights)

    def of_step(world: int, step: int = 1) -> tuple[float, torch.Tensor]:
        feeds = (replace(plan.feed, rank=rank, world=world) for rank in range(world))
        parts = [
            trainer.objective.backward(
                trainer.transformer, feed.step(step), step=step, of_samples=4
            )
            for feed in feeds
        ]
        found = gradients(trainer.trained.weights)
        for weight in trainer.trained.weights.values():
            weight.grad = None
        return sum(part.mean for part in parts), found

    assert len(plan.feed.step(1)) == 2, "the shapes join"
    loss, whole = of_step(1)
    for world in (2, 4):
        other, found = of_step(world)
        assert other == pytest.approx(loss, rel=1e-5)
        assert (found - whole).norm() < 1e-5 * whole.norm()
    trainer.objective = replace(trainer.objective, seed=7)
    assert of_step(1)[0] != pytest.approx(loss, rel=1e-2), "another seed drops otherwise"
