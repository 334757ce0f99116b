"""Forward and backward of one optimizer step: noise, rollouts, the loss, its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...models.lora.sample_dropout import SampleDropout, seed_dropouts
from ...models.transformer.transformer import Shown, predict_velocities
from ..data.feed import Batch, forwards
from ..data.scheduled_sampling import Rollouts
from ..data.seeds import stream
from .loss import LossType, noised, sample_losses
from .rollout import Rolled, drift_penalty, frequency_weights, roll_out

SIGMA_BANDS = 4


@dataclass(frozen=True)
class StepLosses:
    """The loss of every sample that this process computed in a step.

    Attributes:
        values: on the device, in float32; to look at them is to wait for it.
        sigma: the exact noise levels, on the CPU.
        of_samples: how many samples the step has over all processes.
    """

    values: Float[Tensor, " sample"]
    sigma: Float[Tensor, " sample"]
    names: tuple[str, ...]
    captions: tuple[str, ...]
    of_samples: int

    @cached_property
    def known(self) -> Float[Tensor, " sample"]:
        """Return the values on the CPU, fetched once."""
        return self.values.cpu()

    @property
    def mean(self) -> float:
        """Return this process's part of the mean loss of the step: all processes' parts add up."""
        return float(self.known.sum()) / self.of_samples

    @property
    def by_sigma(self) -> dict[str, float]:
        """Return the mean loss of each quarter of the noise levels that had samples.

        The key "0.25" is the quarter from 0.25 to 0.5.
        """
        bands = (self.sigma * SIGMA_BANDS).long().clamp(max=SIGMA_BANDS - 1)
        return {
            f"{band / SIGMA_BANDS:.2f}": float(self.known[bands == band].mean())
            for band in bands.unique().tolist()
        }

    @property
    def not_finite(self) -> dict[int, float]:
        """Return the places of the samples whose loss is NaN or infinite, with that loss."""
        broken = (~self.known.isfinite()).nonzero().flatten().tolist()
        return {place: float(self.known[place]) for place in broken}


@dataclass(frozen=True)
class Objective:
    """Computes the loss of batches: how a forward is run and how its error is measured.

    Attributes:
        seed: decides the LoRA's dropout, the only thing drawn in a forward.
        dropouts: where it is drawn, if the LoRA has any.
        rollouts: how the samples are rolled out that the batches say so of.
    """

    dtype: torch.dtype
    device: torch.device
    loss_type: LossType = "l2"
    huber_c: float = 0.1
    seed: int = 0
    dropouts: tuple[SampleDropout, ...] = ()
    rollouts: Rollouts | None = None

    def losses(self, transformer: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the loss of each sample of `batch`: one forward, target tokens alone, in float32.

        Nothing is rolled out.
        """
        return self._losses(transformer, [batch])

    def _shown(
        self,
        batch: Batch,
        state: Float[Tensor, "batch channel height width"],
        *,
        sigma: Float[Tensor, " batch"],
    ) -> Shown:
        return Shown(
            noisy=state.to(self.dtype),
            references=tuple(reference.to(self.dtype) for reference in batch.references),
            embeds=batch.embeds.to(self.dtype),
            text_lengths=batch.text_lengths,
            sigma=sigma,
        )

    def _losses(
        self, transformer: nn.Module, batches: Sequence[Batch], *, step: int | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the losses of all samples of `batches`, in one forward.

        Args:
            step: given where they are trained on: samples are rolled out, dropout is drawn.
        """
        to_device = partial(Tensor.to, device=self.device, non_blocking=True)
        placed = [batch.changed(to_device) for batch in batches]
        states = [noised(batch.target.float(), batch.noise, batch.sigma) for batch in placed]
        shown = [
            self._shown(batch, state, sigma=own.sigma)
            for batch, state, own in zip(placed, states, batches, strict=True)
        ]
        rolled: list[Rolled | None] = [None] * len(batches)
        if step is not None:
            if self.rollouts and any(batch.rollouts for batch in batches):
                rolled = roll_out(transformer, placed, shown, self.rollouts)
                shown = [
                    rolled_batch.shown if rolled_batch else own
                    for rolled_batch, own in zip(rolled, shown, strict=True)
                ]
            places = [batch.first_position + row for batch in batches for row in range(len(batch))]
            seed_dropouts(
                self.dropouts, (stream(self.seed, "dropout", step, place) for place in places)
            )
        velocities = predict_velocities(transformer, shown)
        return torch.cat(
            [self._loss_of(*each) for each in zip(placed, velocities, rolled, strict=True)]
        )

    def _loss_of(
        self,
        batch: Batch,
        predicted: Float[Tensor, "batch channel height width"],
        rolled: Rolled | None,
    ) -> Float[Tensor, " batch"]:
        reflex = self.rollouts.reflex if self.rollouts else None
        measure = partial(
            sample_losses,
            predicted,
            batch.noise - batch.target.float(),
            loss_type=self.loss_type,
            huber_c=self.huber_c,
            weights=batch.weights,
        )
        if rolled is None or reflex is None or rolled.unbiased is None:
            return measure()
        factors = frequency_weights(rolled.unbiased, predicted, alpha=reflex.alpha)
        drifted = drift_penalty(predicted, rolled.state, batch.target, batch.weights)
        corrected = reflex.beta2 * measure(factors=factors) + reflex.beta1 * drifted
        return torch.where(rolled.is_rolled, corrected, measure())

    def backward(
        self,
        transformer: nn.Module,
        batches: Sequence[Batch],
        *,
        step: int,
        of_samples: int | None = None,
    ) -> StepLosses:
        """Add up the gradients of the mean loss over all samples of `step`; return the losses.

        Every sample weighs the same, also where batches are of different lengths. Nothing in
        here waits for the device.

        Args:
            of_samples: how many samples the step has where other processes compute some of
                them; the gradients of all processes are then to be summed, not averaged.
        """
        samples = of_samples or sum(len(batch) for batch in batches)
        losses = []
        for group in forwards(batches):
            loss = self._losses(transformer, group, step=step)
            torch.autograd.backward(loss.sum() / samples)
            losses.append(loss.detach())
        return StepLosses(
            values=torch.cat(losses) if losses else torch.zeros(0, device=self.device),
            sigma=torch.cat([batch.sigma for batch in batches]) if batches else torch.zeros(0),
            names=tuple(name for batch in batches for name in batch.names),
            captions=tuple(caption for batch in batches for caption in batch.captions),
            of_samples=samples,
        )
