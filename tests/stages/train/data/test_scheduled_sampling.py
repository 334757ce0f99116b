"""Rollouts are drawn with the offsets and the probabilities of the settings."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from qedit.config.settings import Settings
from qedit.stages.train.data.scheduled_sampling import Reflex, Rollouts, Sampler, rollouts_of
from qedit.stages.train.data.seeds import stream
from qedit.stages.train.data.sigmas import Sigmas
from qedit.stages.train.objective.rollout import Start
from qedit.stages.train.objective.step import Objective
from qedit.stages.train.plan.training_plan import make_plan


def drawn(rollouts: Rollouts, *, sigma: float = 0.5, count: int = 4000) -> Counter[int]:
    random = stream(0, "test")
    return Counter(rollouts.draw(random, step=10, sigma=sigma) for _ in range(count))


def test_offsets_follow_their_strategies() -> None:
    uniform = drawn(Rollouts(4, "uniform", probability=1.0))
    assert all(uniform[offset] / 4000 == pytest.approx(0.2, abs=0.03) for offset in range(5))
    # round(4u²) <= 1 where u² < 1.5/4, and round(4(1 - u²)) <= 1 where u² > 2.5/4
    early = drawn(Rollouts(4, "biased_early", probability=1.0))
    assert (early[0] + early[1]) / 4000 == pytest.approx(math.sqrt(1.5 / 4), abs=0.03)
    late = drawn(Rollouts(4, "biased_late", probability=1.0))
    assert (late[0] + late[1]) / 4000 == pytest.approx(1 - math.sqrt(2.5 / 4), abs=0.03)


def test_no_rollout_starts_beyond_the_last_step() -> None:
    near = drawn(Rollouts(8, probability=1.0), sigma=0.9964)  # step 996
    assert set(near) == {0, 1, 2, 3}
    assert near[3] / 4000 == pytest.approx(6 / 9, abs=0.03)
    assert set(drawn(Rollouts(8, probability=1.0), sigma=0.9999)) == {0}


class Fixed(Sigmas):
    """The same noise level for every sample."""

    def draw(self, random: Any, *, target_tokens: int) -> float:
        return self.scale


@pytest.mark.parametrize("sampler", ["unipc", "dpm", "euler"])
@pytest.mark.parametrize(
    "sigma",
    # float32 has the first ones beyond a step of 1/1000, and the last one at 0
    [0.6 - 1e-12, 0.7 - 1e-9, 0.9 - 1e-12, 0.001 - 1e-15, 1e-9, 1e-30, 1e-60],
)
def test_the_longest_rollout_of_every_sigma_has_an_end(
    made: Any, sampler: Sampler, sigma: float
) -> None:
    rollouts = Rollouts(999, probability=1.0, sampler=sampler)
    feed = replace(make_plan(made()).feed, sigmas=Fixed(scale=sigma), rollouts=rollouts)
    objective = Objective(dtype=torch.float32, device=torch.device("cpu"))
    furthest = 0.0
    for step in range(1, 9):
        for batch in feed.step(step):
            shown = objective._shown(batch, batch.noise, sigma=batch.sigma)
            for row, steps in enumerate(batch.rollouts):
                clean, noise = batch.target[row : row + 1].float(), batch.noise[row : row + 1]
                start = Start(shown.row(row), clean, noise, float(batch.sigma[row]), steps)
                furthest = max(furthest, start.path(sampler, 3).sigmas[0])
    assert furthest < 1
    # one that is cut at the last of the 1000 steps, and goes to the end
    shape = (1, 16, 2, 2)
    start = replace(start, clean=torch.zeros(shape), noise=torch.ones(shape), steps=0)
    longest = max(0, 999 - math.floor(start.sigma * 1000))
    path = replace(start, steps=longest).path(sampler, 3)
    while not path.arrived:
        path.follow(torch.ones(shape))
    assert (path.state - start.sigma).abs().max() < 1e-4


def test_what_float32_has_as_noise_alone_is_not_rolled_out(made: Any) -> None:
    rollouts = Rollouts(999, probability=1.0)
    feed = replace(make_plan(made()).feed, sigmas=Fixed(scale=1 - 1e-12), rollouts=rollouts)
    assert {batch.rollouts for batch in feed.step(1)} == {()}


def test_the_probability_is_constant_or_a_ramp() -> None:
    constant = Rollouts(4, probability=0.25, start_step=5)
    assert [constant.chance(step) for step in (4, 5, 900)] == [0.0, 0.25, 0.25]
    linear = Rollouts(4, prob_start=0.1, prob_end=0.5, ramp_steps=100, start_step=20)
    assert linear.chance(19) == 0.0
    assert linear.chance(20) == pytest.approx(0.1)
    assert linear.chance(45) == pytest.approx(0.2)
    assert linear.chance(500) == pytest.approx(0.5)
    cosine = replace(linear, ramp_shape="cosine")
    assert cosine.chance(45) == pytest.approx(0.1 + 0.4 * (0.5 - 0.5 * math.cos(math.pi / 4)))
    share = 1 - drawn(Rollouts(1, "biased_late", probability=0.25))[0] / 4000
    assert share == pytest.approx(0.25 * math.sqrt(0.5), abs=0.03)


def test_every_setting_reaches_the_rollouts() -> None:
    prefix = "scheduled_sampling_"

    def of(**settings: Any) -> Rollouts | None:
        on = {"max_step_offset": 7, "probability": 0.5, "reflexflow": True, **settings}
        named = {prefix + key: value for key, value in on.items()}
        return rollouts_of(Settings.model_validate({"model_flavour": "edit-v2", **named}))

    plain = of()
    assert plain == Rollouts(7, probability=0.5, reflex=Reflex(1.0, 10.0, 1.0))
    assert of(max_step_offset=0) is None
    assert of(probability=0.0) is None
    assert of(reflexflow=False) == replace(plain, reflex=None)
    for key, value in {
        "strategy": "biased_late",
        "prob_start": 0.2,
        "prob_end": 0.9,
        "ramp_steps": 50,
        "start_step": 9,
        "ramp_shape": "cosine",
        "sampler": "dpm",
        "order": 3,
    }.items():
        assert of(**{key: value}) == replace(plain, **{key: value})
    assert of(reflexflow_alpha=2, reflexflow_beta1=3, reflexflow_beta2=4) == replace(
        plain, reflex=Reflex(2.0, 3.0, 4.0)
    )
