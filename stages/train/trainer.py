"""The model and everything a step changes: one optimizer step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...cache.errors import QeditError
from ..models.learning_rate import learning_rate_schedule
from ..models.lora_file import Lora
from .checkpoint import Trained
from .ema import Ema
from .feed import Batch
from .model import open_model, training_dtype
from .optimizers import make_optimizer
from .plan import Plan
from .step import Objective


@dataclass
class Trainer:
    """The model and everything a step changes or needs."""

    transformer: nn.Module
    trained: Trained
    objective: Objective
    learning_rate: Callable[[int], float]
    max_grad_norm: float

    @classmethod
    def load(cls, plan: Plan, *, device: torch.device, start: Lora | None = None) -> Trainer:
        """Load the base, put the LoRA on it (as `start`), and make optimizer and average."""
        settings = plan.settings
        transformer, weights = open_model(plan, device=device, start=start)
        transformer.train()
        if settings.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()  # type: ignore[operator]
        rate = learning_rate_schedule(
            settings.lr_scheduler,
            settings.learning_rate,
            steps=plan.steps,
            warmup_steps=settings.lr_warmup_steps,
            config=settings.lr_scheduler_config,
        )
        optimizer = make_optimizer(
            weights,
            learning_rate=settings.learning_rate,
            name=settings.optimizer,
            config=settings.optimizer_config,
        )
        return cls(
            transformer=transformer,
            trained=Trained(weights, optimizer, _average(plan, weights, device=device)),
            objective=Objective(
                dtype=training_dtype(plan),
                device=device,
                loss_type=settings.loss_type,
                huber_c=float(settings.huber_c),
                seed=settings.seed,
            ),
            learning_rate=rate,
            max_grad_norm=float(settings.max_grad_norm),
        )

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        """Make one optimizer step; what the log says of it.

        Raises:
            QeditError: a loss or gradient is not a finite number; nothing was changed.
        """
        optimizer, weights = self.trained.optimizer, self.trained.weights
        rate = self.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = self.objective.backward(self.transformer, batches, step=step)
        losses.refuse_not_finite(step=step)
        limit = self.max_grad_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), limit))
        if not norm < float("inf"):
            names = ", ".join(name for batch in batches for name in batch.names)
            raise QeditError(
                f"The gradient of step {step} is {norm} (samples: {names}). "
                "The last checkpoint is untouched.",
                "Lower `learning_rate`, or look at those samples with `qedit inspect`.",
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.trained.ema:
            self.trained.ema.follow(weights, step=step)
        return {"loss": losses.mean, "lr": rate, "grad_norm": norm}


def _average(plan: Plan, weights: dict[str, nn.Parameter], *, device: torch.device) -> Ema | None:
    settings = plan.settings
    if not settings.use_ema:
        return None
    return Ema(
        weights,
        decay=float(settings.ema_decay),
        device=str(device) if settings.ema_device == "accelerator" else "cpu",
        every_steps=settings.ema_update_interval,
    )
