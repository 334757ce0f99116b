"""Rolling samples out: training at a state that the model itself has reached.

A sample that is rolled out starts with more noise than its sigma asks for, and the weights as
they are bring it down to that sigma, without gradient and without dropout. That state is its
input; what is to be predicted stays noise - clean. References are clean all the way.

With ReflexFlow (arXiv 2512.04904) the loss of such a sample is

    beta2 * mean(w * l)  +  beta1 * | p/|p| - (x - clean)/|x - clean| |²

with l the pointwise loss, p the prediction at the rolled state x, and w = 1 + alpha * e / sum|e|
where e = q - p and q is the prediction at the state that was not rolled out: e and w have no
gradient. The first part is the paper's frequency frequency_weights (what vanishes in the rollout
weighs more), the second its anti-drift rectification: with velocities that point from picture
to noise, the way back from a drifted state is along -(x - clean), so p is drawn to
x - clean. Sums and norms are over all of a sample. The authors have withdrawn the paper for
revision since; the signs are those of its first version as corrected in the trainer that the
options are known from (its pull request 2156).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...models.transformer.transformer import TIMESTEPS, Shown, predict_velocities
from ..data.feed import Batch
from ..data.scheduled_sampling import Rollouts, Sampler
from .eval_mode import eval_mode
from .loss import noised
from .solvers import Path


@dataclass(frozen=True)
class Rolled:
    """A batch of which some samples were rolled out.

    Attributes:
        shown: what the model is trained on; `state` is the same in float32.
        is_rolled: whether each of its samples was rolled out.
        unbiased: the predictions for these at the states they would else have; only where
            ReflexFlow asks for them. Those of the others are zero.
    """

    shown: Shown
    state: Float[Tensor, "batch channel height width"]
    is_rolled: Bool[Tensor, " batch"]
    unbiased: Float[Tensor, "batch channel height width"] | None


def roll_out(
    transformer: nn.Module,
    batches: Sequence[Batch],
    shown: Sequence[Shown],
    rollouts: Rollouts,
) -> list[Rolled | None]:
    """Roll out what the batches of one forward ask for; return None for a batch that asks nothing.

    Args:
        shown: the batches as they would else be shown.
    """
    starts = {
        (number, row): Start(
            shown=shown[number].row(row),
            clean=batch.target[row : row + 1].float(),
            noise=batch.noise[row : row + 1],
            sigma=float(shown[number].sigma[row]),
            steps=steps,
        )
        for number, batch in enumerate(batches)
        for row, steps in enumerate(batch.rollouts)
        if steps
    }
    states = rolled_out(
        transformer, list(starts.values()), sampler=rollouts.sampler, order=rollouts.order
    )
    arrived = dict(zip(starts, states, strict=True))
    unbiased: dict[tuple[int, int], Tensor] = {}
    if rollouts.reflex and starts:
        with eval_mode(transformer):
            velocities = predict_velocities(transformer, [start.shown for start in starts.values()])
        unbiased = dict(zip(starts, velocities, strict=True))
    return [
        _rolled(
            batch,
            shown[number],
            {row: state for (of, row), state in arrived.items() if of == number},
            {row: velocity for (of, row), velocity in unbiased.items() if of == number},
        )
        if any(batch.rollouts)
        else None
        for number, batch in enumerate(batches)
    ]


def _rolled(
    batch: Batch, shown: Shown, arrived: dict[int, Tensor], unbiased: dict[int, Tensor]
) -> Rolled:
    """Return the batch with the rolled states in their rows."""
    own = noised(batch.target.float(), batch.noise, batch.sigma)
    rows = range(len(batch))
    state = torch.cat([arrived.get(row, own[row : row + 1]) for row in rows])
    is_rolled = torch.tensor([row in arrived for row in rows]).to(own.device, non_blocking=True)
    none = torch.zeros_like(shown.noisy[:1])
    return Rolled(
        shown=replace(shown, noisy=state.to(shown.noisy.dtype)),
        state=state,
        is_rolled=is_rolled,
        unbiased=torch.cat([unbiased.get(row, none) for row in rows]) if unbiased else None,
    )


@dataclass(frozen=True)
class Start:
    """A sample that is to be rolled out, as the only row of its tensors.

    Attributes:
        shown: its references and text; its state and sigma are those it is brought to.
        clean, noise: in float32.
        sigma: as in `shown`.
        steps: how many, of 1/1000 each.
    """

    shown: Shown
    clean: Float[Tensor, "1 channel height width"]
    noise: Float[Tensor, "1 channel height width"]
    sigma: float
    steps: int

    def path(self, sampler: Sampler, order: int) -> Path:
        """Return the path from `steps` steps more noise down to `sigma`."""
        sigmas = [self.sigma + back / TIMESTEPS for back in range(self.steps, -1, -1)]
        first = torch.full((1,), sigmas[0], dtype=torch.float32, device=self.clean.device)
        return Path(noised(self.clean, self.noise, first), sigmas, sampler, order)


def rolled_out(
    transformer: nn.Module, starts: Sequence[Start], *, sampler: Sampler, order: int
) -> list[Float[Tensor, "1 channel _h _w"]]:
    """Return the state, in float32, that each sample has when it arrives at its sigma.

    All go through the model together; one that has arrived is no longer computed.
    """
    paths = [start.path(sampler, order) for start in starts]
    with eval_mode(transformer):
        while moving := [pair for pair in zip(starts, paths, strict=True) if not pair[1].arrived]:
            shown = [
                replace(
                    start.shown,
                    noisy=path.state.to(start.shown.noisy.dtype),
                    sigma=torch.full_like(start.shown.sigma, path.sigma),
                )
                for start, path in moving
            ]
            for (_, path), velocity in zip(
                moving, predict_velocities(transformer, shown), strict=True
            ):
                path.follow(velocity.float())
    return [path.state for path in paths]


def frequency_weights(
    clean: Float[Tensor, "batch channel height width"],
    biased: Float[Tensor, "batch channel height width"],
    *,
    alpha: float,
) -> Float[Tensor, "batch channel height width"]:
    """Return ReflexFlow's weights w of the pointwise losses; 1 where both predictions agree."""
    lost = (clean - biased).detach().float()
    total = lost.abs().sum((1, 2, 3), keepdim=True)
    return 1 + alpha * lost / total.clamp_min(torch.finfo(torch.float32).tiny)


def drift_penalty(
    predicted: Float[Tensor, "batch channel height width"],
    state: Float[Tensor, "batch channel height width"],
    clean: Float[Tensor, "batch channel height width"],
    weights: Float[Tensor, "batch 1 height width"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return ReflexFlow's squared distance of two directions, for each sample.

    They are that of the prediction and that from the clean latents to the state, both multiplied
    by the square root of `weights` where those are given.
    """
    ways = [predicted.float(), state.float() - clean.float()]
    if weights is not None:
        ways = [way * weights.sqrt() for way in ways]
    first, second = (nn.functional.normalize(way.flatten(1), dim=1) for way in ways)
    return (first - second).square().sum(1)
