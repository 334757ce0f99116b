"""The solvers against diffusers' own schedulers, and against flows whose end is known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from qedit.stages.train.data.scheduled_sampling import Sampler
from qedit.stages.train.objective.solvers import Path

GRID = [0.83, 0.79, 0.74, 0.70, 0.61, 0.60, 0.52]


def velocity(state: Tensor, sigma: float) -> Tensor:
    """A flow that is not straight and depends on the state."""
    return torch.sin(3 * state) + state * sigma - 0.4


def solved(sampler: Sampler, order: int, sigmas: list[float], start: Tensor) -> Tensor:
    path = Path(start, sigmas, sampler, order)
    while not path.arrived:
        path.follow(velocity(path.state, path.sigma))
    return path.state


def stock(scheduler: Any, sigmas: list[float], start: Tensor) -> Tensor:
    """The same path by a scheduler of diffusers."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    scheduler.set_begin_index(0)
    state = start
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        state = scheduler.step(velocity(state, sigma), timestep, state, return_dict=False)[0]
    return state


def runge_kutta(sigmas: list[float], state: Tensor) -> Tensor:
    """The classical method of order four, written by hand."""
    for here, there in pairwise(sigmas):
        h = there - here
        one = velocity(state, here)
        two = velocity(state + h / 2 * one, here + h / 2)
        three = velocity(state + h / 2 * two, here + h / 2)
        four = velocity(state + h * three, there)
        state = state + h / 6 * (one + 2 * two + 2 * three + four)
    return state


@pytest.fixture
def start() -> Tensor:
    return torch.linspace(-2, 2, 48, dtype=torch.float64).view(1, 3, 4, 4)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # numpy's, of diffusers
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_is_that_of_diffusers(order: int, start: Tensor) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        solver_order=order,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        lower_order_final=False,
        final_sigmas_type="sigma_min",  # else the last step is of order 1
    )
    expected = stock(scheduler, GRID, start)
    torch.testing.assert_close(solved("dpm", order, GRID, start), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_that_of_diffusers(order: int, start: Tensor) -> None:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        solver_order=order,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        lower_order_final=False,
    )
    expected = stock(scheduler, GRID, start)
    torch.testing.assert_close(solved("unipc", order, GRID, start), expected, rtol=1e-6, atol=1e-6)


def test_euler_is_written_by_hand(start: Tensor) -> None:
    state = start
    for here, there in pairwise(GRID):
        state = state + (there - here) * velocity(state, here)
    torch.testing.assert_close(solved("euler", 2, GRID, start), state, rtol=0, atol=0)
    torch.testing.assert_close(solved("dpm", 1, GRID, start), state)


@pytest.mark.parametrize(
    ("sampler", "order"), [("euler", 1), ("dpm", 2), ("dpm", 3), ("unipc", 2), ("unipc", 3)]
)
def test_higher_orders_come_closer_to_the_true_end(
    sampler: Sampler, order: int, start: Tensor
) -> None:
    fine = [0.8 - 0.3 * place / 1600 for place in range(1601)]
    truth = runge_kutta(fine, start)
    errors = [
        float((solved(sampler, order, fine[::every], start) - truth).abs().max())
        for every in (160, 80)
    ]
    halved = math.log2(errors[0] / errors[1])
    assert halved > (0.9 if sampler == "euler" else 1.7)


def test_a_straight_flow_is_followed_exactly(start: Tensor) -> None:
    picture = torch.cos(start)
    for sampler, order in (("euler", 1), ("dpm", 3), ("unipc", 2)):
        path = Path(0.2 * picture + 0.8 * start, [0.8, 0.7, 0.65, 0.5], sampler, order)
        while not path.arrived:
            path.follow(start - picture)
        torch.testing.assert_close(path.state, 0.5 * picture + 0.5 * start)
