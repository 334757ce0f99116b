"""The model and everything a step changes: one optimizer step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.learning_rate import learning_rate_schedule
from ..models.lora.lora_file import Lora
from ..models.lora.sample_dropout import drop_by_sample
from ..models.memory_estimate.memory_plan import Fit
from ..models.transformer.compiled import compile_blocks
from .apply_memory_plan import apply_fit, fit_of, load_device
from .data.feed import Batch
from .model import open_model, training_dtype
from .objective.step import Objective, StepLosses
from .plan.training_plan import Plan
from .ranks import ALONE, Ranks
from .state.checkpoint import Trained
from .state.ema import Ema
from .state.optimizers import make_optimizer
from .state.skips import find_not_finite


@dataclass
class Trainer:
    """The model and everything a step changes or needs."""

    transformer: nn.Module
    trained: Trained
    objective: Objective
    learning_rate: Callable[[int], float]
    max_grad_norm: float
    ranks: Ranks = ALONE

    @classmethod
    def load(
        cls,
        plan: Plan,
        *,
        device: torch.device,
        start: Lora | None = None,
        ranks: Ranks = ALONE,
        fit: Fit | None = None,
    ) -> Trainer:
        """Load the base, put the LoRA on it (as `start`), and make optimizer and average.

        Args:
            fit: how it is fitted into the device's memory; None: as memory and settings say.
        """
        settings, fit = plan.settings, fit or fit_of(plan, device)
        rate = learning_rate_schedule(
            settings.lr_scheduler,
            settings.learning_rate,
            steps=plan.steps,
            warmup_steps=settings.lr_warmup_steps,
            config=settings.lr_scheduler_config,
        )
        transformer, weights = open_model(
            plan,
            device=load_device(fit, device),
            start=start,
            writes=ranks.is_first,
            computes_on=device,
        )
        transformer.train()
        dropouts = drop_by_sample(transformer)
        apply_fit(fit, transformer, device=device)
        if settings.compile_blocks:
            compile_blocks(transformer)
        for weight in weights.values():  # with `model_type` full these are beside the model
            weight.data = weight.data.to(device)
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
                dropouts=dropouts,
                rollouts=plan.feed.rollouts,
            ),
            learning_rate=rate,
            max_grad_norm=float(settings.max_grad_norm),
            ranks=ranks,
        )

    def step(
        self, step: int, batches: Sequence[Batch], *, of_samples: int | None = None
    ) -> dict[str, Any]:
        """Make one optimizer step; return the values for the log.

        A step whose loss or gradient is not finite changes nothing: its loss and
        gradient are then None, and `skipped` says why.

        Args:
            of_samples: how many samples the step has over all processes.

        Raises:
            SameErrorOnAllRanks: too many steps were skipped.
        """
        optimizer, weights = self.trained.optimizer, self.trained.weights
        rate = self.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = self.objective.backward(
            self.transformer, batches, step=step, of_samples=of_samples
        )
        self.ranks.sum_gradients(weights.values())
        limit = self.max_grad_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), limit))
        losses = _gathered(losses, self.ranks)
        about = {"lr": rate, "sigma": float(losses.sigma.mean()), "samples": len(losses.sigma)}
        if broken := find_not_finite(step, losses, norm):
            optimizer.zero_grad(set_to_none=True)
            self.trained.skips.skipped(broken)
            return {"loss": None, "grad_norm": None, **about, "skipped": broken.why}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.trained.skips.made()
        if self.trained.ema:
            self.trained.ema.follow(weights, step=step)
        by_sigma = losses.by_sigma
        return {"loss": losses.mean, "grad_norm": norm, **about, "loss_by_sigma": by_sigma}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Exchange the weights and their average while the block runs.

        They change places, one after the other: with `model_type` full there is no room for
        a third copy.
        """
        ema, weights = self.trained.ema, self.trained.weights
        assert ema is not None, "only a run with `use_ema` has an average"
        try:
            _exchange(weights, ema.shadow)
            yield
        finally:
            _exchange(weights, ema.shadow)


@torch.no_grad()
def _exchange(weights: Mapping[str, nn.Parameter], shadow: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        assert weight.dtype == shadow[name].dtype, "both are float32: nothing is rounded"
        average = shadow[name].clone()
        shadow[name].copy_(weight)
        weight.copy_(average)


def _gathered(losses: StepLosses, ranks: Ranks) -> StepLosses:
    """Return the losses of all processes, in the order of their places in the step."""
    if not ranks.are_several:
        return losses
    columns = [losses.known.tolist(), losses.sigma.tolist(), losses.names, losses.captions]
    every = ranks.gathered(columns)
    values, sigma, names, captions = (
        [item for rank in every for item in rank[place]] for place in range(4)
    )
    return replace(
        losses,
        values=torch.tensor(values),
        sigma=torch.tensor(sigma),
        names=tuple(names),
        captions=tuple(captions),
    )


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
