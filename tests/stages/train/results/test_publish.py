"""The published LoRA file predicts in the stock pipeline what training predicts."""

from __future__ import annotations

from typing import Any

import torch
from training import train

from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.transformer.transformer import load_transformer
from qedit.stages.train import loop
from qedit.stages.train.plan.training_plan import make_plan


def test_the_published_file_predicts_what_training_predicts(made: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline

    configuration = made(lora_alpha=2.0, learning_rate=0.1, max_train_steps=3)
    train(configuration)
    plan = make_plan(configuration)
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    where = configuration.settings.output_dir
    trainer.trained.restore(where / "checkpoint-3")
    (batch,) = plan.feed.step(9)
    stock = load_transformer(
        open_checkpoint(configuration.settings), dtype=torch.float32, device="cpu"
    )
    with torch.no_grad():
        ours = trainer.objective.losses(trainer.transformer, batch)
        base = trainer.objective.losses(stock, batch)
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "processor"))
        pipeline = QwenImageEditPlusPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(), transformer=stock, **parts
        )
        pipeline.load_lora_weights(where)
        loaded = trainer.objective.losses(stock, batch)
    torch.testing.assert_close(loaded, ours, rtol=1e-5, atol=1e-6)
    assert (base - ours).abs().max() > 1e-3
