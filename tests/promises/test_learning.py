"""Learning is real: what training shows the model is enough to learn edits it has never seen.

A target here is its reference as it is, or turned over, as the caption says: neither the
reference nor the caption alone tells it. The tiny transformer is trained in full (a LoRA on
random weights learns too slowly for a test), by the very steps that train a LoRA.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
import torch
from filled_run import fill, made_configuration, made_samples_with_edits
from torch import nn

from qedit.stages.models.learning_rate import learning_rate_schedule
from qedit.stages.samples.sample import Sample
from qedit.stages.train.data.batches import Order, Source
from qedit.stages.train.data.feed import Batch, Feed
from qedit.stages.train.objective.step import Objective
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state.checkpoint import Trained
from qedit.stages.train.state.optimizers import make_optimizer
from qedit.stages.train.trainer import Trainer

pytestmark = pytest.mark.full  # 300 steps
STEPS = 300
HELD_OUT = 16
PREFIX_TOKENS = 4


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Trainer, list[Batch]]:
    """The held-out loss before training, the trainer after it, and the held-out batches."""
    samples = made_samples_with_edits(256 + HELD_OUT, sizes=[(32, 32)])
    # a high shift: with much noise, only references and captions tell what the target is
    configuration = made_configuration(tmp_path_factory.mktemp("run"), flow_schedule_shift=3.0)
    fill(configuration, samples)
    feed = make_plan(configuration).feed
    held_out = feed_of(feed, samples[:HELD_OUT])
    batches = [batch for step in range(1, 5) for batch in held_out.step(step)]
    trainer = fresh_trainer()
    before = held_out_loss(trainer, batches)
    for step, shown in feed_of(feed, samples[HELD_OUT:]).ahead(range(1, STEPS + 1)):
        trainer.step(step, shown)
    return before, trainer, batches


def feed_of(feed: Feed, samples: list[Sample]) -> Feed:
    return replace(
        feed, order=Order([Source("edits", samples)], feed.seed, batch_size=16, accumulation=1)
    )


def fresh_trainer() -> Trainer:
    """The real class at torch's own random start, all of it to be trained."""
    from diffusers import QwenImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer: nn.Module = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=64,
            axes_dims_rope=(8, 12, 12),
        )
    weights = dict(transformer.train().named_parameters())
    optimizer = make_optimizer(weights, learning_rate=4e-3, config={"weight_decay": 0.0})
    return Trainer(
        transformer=transformer,
        trained=Trained(weights, optimizer, None),
        objective=Objective(dtype=torch.float32, device=torch.device("cpu")),
        learning_rate=learning_rate_schedule("constant", 4e-3, steps=STEPS, warmup_steps=20),
        max_grad_norm=1.0,
    )


@torch.no_grad()
def held_out_loss(trainer: Trainer, batches: list[Batch]) -> float:
    losses = [trainer.objective.losses(trainer.transformer, batch) for batch in batches]
    return mean(float(loss.mean()) for loss in losses)


def with_other_references(batch: Batch) -> Batch:
    """Every sample with the references of the next one."""
    return replace(batch, references=tuple(latents.roll(1, dims=0) for latents in batch.references))


def with_other_captions(batch: Batch) -> Batch:
    """Every sample with its own image prefix and the caption of one that asks for the opposite."""
    others = [
        next(place for place, other in enumerate(batch.captions) if other != caption)
        for caption in batch.captions
    ]
    embeds = batch.embeds[others].clone()
    embeds[:, :PREFIX_TOKENS] = batch.embeds[:, :PREFIX_TOKENS]
    lengths = tuple(batch.text_lengths[other] for other in others)
    return replace(batch, embeds=embeds, text_lengths=lengths)


def test_the_held_out_loss_falls(learned: tuple[float, Trainer, list[Batch]]) -> None:
    before, trainer, batches = learned
    assert held_out_loss(trainer, batches) < 0.6 * before


def test_the_references_have_been_learned_from(
    learned: tuple[float, Trainer, list[Batch]],
) -> None:
    _, trainer, batches = learned
    shuffled = [with_other_references(batch) for batch in batches]
    assert held_out_loss(trainer, shuffled) > 1.25 * held_out_loss(trainer, batches)


def test_the_captions_have_been_learned_from(
    learned: tuple[float, Trainer, list[Batch]],
) -> None:
    _, trainer, batches = learned
    shuffled = [with_other_captions(batch) for batch in batches]
    assert held_out_loss(trainer, shuffled) > 1.25 * held_out_loss(trainer, batches)
