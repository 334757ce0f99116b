"""One optimizer step's worth of forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...cache.errors import QeditError
from ..models.transformer import predict_velocity
from .draws import seed_of
from .feed import Batch
from .flow import LossType, noised, sample_losses


@dataclass(frozen=True)
class Objective:
    """What a forward is run with and how its error is measured.

    Attributes:
        seed: decides the LoRA's dropout, the only thing drawn in a forward.
    """

    dtype: torch.dtype
    device: torch.device
    loss_type: LossType = "l2"
    huber_c: float = 0.1
    seed: int = 0

    def losses(self, transformer: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
        """The loss of each sample of `batch`: one forward, target tokens alone, in float32."""
        clean, noise = batch.target.to(self.device).float(), batch.noise.to(self.device)
        sigma = batch.sigma.to(self.device)
        predicted = predict_velocity(
            transformer,
            noised(clean, noise, sigma).to(self.dtype),
            [reference.to(self.device, self.dtype) for reference in batch.references],
            batch.embeds.to(self.device, self.dtype),
            mask=None if batch.mask is None else batch.mask.to(self.device),
            sigma=sigma,
        )
        return sample_losses(
            predicted, noise - clean, loss_type=self.loss_type, huber_c=self.huber_c
        )

    def backward(self, transformer: nn.Module, batches: Sequence[Batch], *, step: int) -> float:
        """Add up the gradients of the mean loss over all samples of `step`; give that mean.

        Every sample weighs the same, also where batches are of different lengths.

        Raises:
            QeditError: a sample's loss is not a finite number; names the sample.
        """
        samples = sum(len(batch) for batch in batches)
        losses = []
        for batch in batches:
            torch.manual_seed(seed_of(self.seed, "forward", step, batch.first_position))
            loss = self.losses(transformer, batch)
            torch.autograd.backward(loss.sum() / samples)
            losses.append(loss.detach())
        refuse_not_finite(torch.cat(losses), batches, step=step)
        return float(torch.cat(losses).mean())


def refuse_not_finite(losses: Tensor, batches: Sequence[Batch], *, step: int) -> None:
    """Raise if the loss of a sample is NaN or infinite."""
    finite = losses.isfinite()
    if bool(finite.all()):
        return
    names = [name for batch in batches for name in batch.names]
    captions = [caption for batch in batches for caption in batch.captions]
    place = int((~finite).nonzero()[0])
    raise QeditError(
        f"The loss of {names[place]} (caption: {captions[place]!r}) at step {step} is "
        f"{float(losses[place])}. The last checkpoint is untouched.",
        "Lower `learning_rate`, or take that sample out if it is broken; "
        "`qedit inspect` shows what training sees of it.",
    )
