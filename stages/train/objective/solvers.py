"""Solvers of the flow's equation, by formula: how a state goes on from one sigma to the next.

Each step is a weighted sum of the state and of what was predicted to be the picture, now and
before. The weights depend on the sigmas alone and are computed on the host, so that solving
never waits for a device, and samples of one batch may each have a grid of their own.

With alpha = 1 - sigma and lambda = log(alpha / sigma):

- `euler`: x + (sigma' - sigma) * velocity.
- `dpm`: DPM-Solver++ of order 1 to 3 (multistep, midpoint; arXiv 2211.01095). Order 1 is Euler.
- `unipc`: UniPC of order 1 to 3 (B2 of arXiv 2302.04867), every state but the first corrected
  by what the model says at it.

A step's order is at most the number of predictions there are. Orders are not lowered towards
the end: these paths end in the middle of the flow, but for a last step that ends at the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.scheduled_sampling import Sampler

# A step that ends below is of order 1: its logarithm is far beyond those before.
NEARLY_CLEAN = 1e-6

State = Float[Tensor, "batch channel height width"]


@dataclass(frozen=True)
class Sum:
    """A weighted sum of a state and of predicted pictures, the newest first."""

    state: float
    pictures: tuple[float, ...]

    def of(self, state: State, pictures: Sequence[State]) -> State:
        """Return the weighted sum of `state` and `pictures`."""
        total: Tensor = self.state * state
        for weight, picture in zip(self.pictures, pictures, strict=False):
            total = total + weight * picture
        return total


@dataclass
class Path:
    """A state on its way along `sigmas`; give it the velocity at each of them but the last.

    Attributes:
        sigmas: falling, all of them between 0 and 1.
        pictures: what was predicted to be the picture, the newest first.
    """

    state: State
    sigmas: Sequence[float]
    sampler: Sampler
    order: int
    pictures: list[State] = field(default_factory=list)
    _taken: int = 0
    _before: tuple[State, int] | None = None

    @property
    def arrived(self) -> bool:
        """Return whether the state is at the last sigma."""
        return self._taken == len(self.sigmas) - 1

    @property
    def sigma(self) -> float:
        """Return the sigma of the state."""
        return self.sigmas[self._taken]

    def follow(self, velocity: State) -> None:
        """Move the state to the next sigma.

        Args:
            velocity: predicted by the model at the present state and sigma."""
        if self.sampler == "euler":
            step = self.sigmas[self._taken + 1] - self.sigma
            self.state = self.state + step * velocity
            self._taken += 1
            return
        self.pictures.insert(0, self.state - self.sigma * velocity)
        del self.pictures[self.order + 1 :]
        seen = self.sigmas[: self._taken + 1]
        if self.sampler == "unipc" and self._before is not None:
            start, order = self._before
            self.state = unipc_corrector(seen, order=order).of(start, self.pictures)
        is_last = self.sigmas[self._taken + 1] < NEARLY_CLEAN
        order = 1 if is_last else min(self.order, self._taken + 1)
        rule = dpm if self.sampler == "dpm" else unipc_predictor
        self._before = (self.state, order)
        forward = rule(self.sigmas[: self._taken + 2], order=order)
        self.state = forward.of(self.state, self.pictures)
        self._taken += 1


def dpm(sigmas: Sequence[float], *, order: int) -> Sum:
    """Return the weights of a step from the last sigma but one to the last.

    Args:
        sigmas: of the predictions so far, oldest first, and of the step's end."""
    *_, here, there = sigmas
    h = _log(there) - _log(here)
    shrink = math.expm1(-h)
    alpha = 1 - there
    weights = np.zeros(order)
    weights[0] = -alpha * shrink
    if order >= 2:
        r0 = (_log(here) - _log(sigmas[-3])) / h
        first = np.array([1.0, -1.0]) / r0
        if order == 2:
            weights += -0.5 * alpha * shrink * first
        else:
            r1 = (_log(sigmas[-3]) - _log(sigmas[-4])) / h
            newer, older = np.array([*first, 0.0]), np.array([0.0, 1.0, -1.0]) / r1
            slope = newer + r0 / (r0 + r1) * (newer - older)
            bend = (newer - older) / (r0 + r1)
            weights += alpha * (shrink / h + 1) * slope
            weights += -alpha * ((shrink + h) / h**2 - 0.5) * bend
    return Sum(there / here, tuple(weights.tolist()))


def unipc_predictor(sigmas: Sequence[float], *, order: int) -> Sum:
    """Return the weights of a step from the last sigma but one to the last.

    Args:
        sigmas: of the predictions so far, oldest first, and of the step's end."""
    ratios, matrix, values, grown, alpha = _unipc(sigmas, order=order)
    weights = np.zeros(order)
    weights[0] = -alpha * grown
    if order > 1:
        shares = np.array([0.5]) if order == 2 else np.linalg.solve(matrix[:-1, :-1], values[:-1])
        weights[1:] -= alpha * grown * shares / ratios
        weights[0] += alpha * grown * float((shares / ratios).sum())
    return Sum(sigmas[-1] / sigmas[-2], tuple(weights.tolist()))


def unipc_corrector(sigmas: Sequence[float], *, order: int) -> Sum:
    """Return the weights of that step made again, with the prediction at its end as the newest."""
    ratios, matrix, values, grown, alpha = _unipc(sigmas, order=order)
    shares = np.array([0.5]) if order == 1 else np.linalg.solve(matrix, values)
    weights = np.zeros(order + 1)
    weights[0] = -alpha * grown * shares[-1]
    weights[2:] = -alpha * grown * shares[:-1] / ratios
    weights[1] = -alpha * grown - float(weights.sum())
    return Sum(sigmas[-1] / sigmas[-2], tuple(weights.tolist()))


def _unipc(
    sigmas: Sequence[float], *, order: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Return where earlier predictions lie in units of the step, and the shares' equations."""
    *_, here, there = sigmas
    h = _log(there) - _log(here)
    earlier = [sigmas[-2 - back] for back in range(1, order)]
    ratios = np.array([(_log(sigma) - _log(here)) / h for sigma in earlier])
    grown = math.expm1(-h)
    matrix = np.stack([np.append(ratios, 1.0) ** power for power in range(order)])
    values, term, factorial = [], grown / -h - 1, 1
    for power in range(1, order + 1):
        values.append(term * factorial / grown)
        factorial *= power + 1
        term = term / -h - 1 / factorial
    return ratios, matrix, np.array(values), grown, 1 - there


def _log(sigma: float) -> float:
    return math.log((1 - sigma) / sigma) if sigma else math.inf
