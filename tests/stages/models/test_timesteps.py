"""Every timestep that training, rollouts, evaluation and previews ask for has its row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qedit.config.settings import Settings
from qedit.stages.frozen_base.modulation_table import (
    LOWEST_SIGMA,
    LOWEST_SIGMA_OF_ANY,
    lowest_sigma,
)
from qedit.stages.models.timesteps import ZERO, every_timestep, shift_exponent
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.models.transformer.denoise import load_scheduler, set_sigmas
from qedit.stages.models.transformer.modulation import bits_of
from qedit.stages.train.data.seeds import stream
from qedit.stages.train.data.sigmas import Sigmas, shifted
from qedit.stages.train.evaluation.evaluate import SIGMAS
from qedit.stages.train.plan.training_plan import sigmas_of


def test_every_timestep_that_a_sigma_can_become_has_a_row() -> None:
    sigma = torch.cat([torch.linspace(0.001, 1, 400_001), torch.tensor([1.0])])
    asked = (sigma * 1000).to(torch.bfloat16) / 1000  # as the pipelines round
    there = every_timestep(lowest_sigma=0.001)
    assert set(bits_of(asked)) <= set(there)
    assert ZERO in there
    # from 0.001 to 1 there are ten octaves of at most 128 bfloat16 each
    assert 1200 < len(there) < 1290


DRAWS: dict[str, dict[str, Any]] = {
    "as inference": {},
    "low": {"flow_schedule_shift": 0.2},
    "high": {"flow_schedule_shift": 7.0},
    "wide and low": {"flow_sigmoid_scale": 3.0, "flow_schedule_shift": 0.2},
    "uniform": {"flow_use_uniform_schedule": True},
    "uniform and low": {"flow_use_uniform_schedule": True, "flow_schedule_shift": 0.2},
    "beta": {"flow_use_beta_schedule": True},
    "beta at the ends": {
        "flow_use_beta_schedule": True,
        "flow_beta_schedule_alpha": 0.5,
        "flow_beta_schedule_beta": 0.5,
        "flow_schedule_shift": 1.0,
    },
}


@pytest.mark.parametrize("draws", DRAWS)
def test_whatever_training_draws_has_a_row(draws: str, tmp_path: Path) -> None:
    """Also on the way of every rollout, of any length, to any noise level."""
    settings = Settings.model_validate({"model_flavour": "edit-v2", **DRAWS[draws]})
    random, count = stream(1, draws), 20_000
    # the automatic shift of the released checkpoints
    (tmp_path / "scheduler_config.json").write_text("{}")
    schedule = sigmas_of(settings, tmp_path)
    drawn = np.array([schedule.draw(random, target_tokens=4096) for _ in range(count)])
    back = random.integers(0, 1000, count) / 1000
    sigmas = torch.tensor(np.concatenate([drawn, np.minimum(drawn + back, 0.99999)])).float()
    asked = bits_of((sigmas * 1000).to(torch.bfloat16) / 1000)
    there = set(every_timestep(lowest_sigma=lowest_sigma(settings)))
    assert sum(bits not in there for bits in asked) <= 2
    assert len(there) < 4000  # 18 GB at full scale


def test_a_table_has_an_end_whatever_is_drawn() -> None:
    """Also where e to the power of a draw is no float."""
    settings = Settings.model_validate({"model_flavour": "edit-v2", "flow_sigmoid_scale": 1e4})
    assert lowest_sigma(settings) == LOWEST_SIGMA_OF_ANY


def test_evaluation_and_previews_have_their_rows_with_any_settings(tmp_path: Path) -> None:
    scheduler = load_scheduler(make_tiny(tmp_path / "model", "edit-v2") / "scheduler")
    asked = [torch.tensor(SIGMAS)]
    for steps in (2, 3, 7, 30, 50, 99):
        asked += [
            set_sigmas(scheduler, steps=steps, target_tokens=n)[:-1] for n in (16, 1024, 8192)
        ]
    timesteps = (torch.cat(asked) * 1000).to(torch.bfloat16) / 1000
    always = every_timestep(lowest_sigma=LOWEST_SIGMA)
    assert set(bits_of(timesteps)) <= set(always)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_shift": 0.9},
        {"base_shift": 0.4, "max_shift": 1.1, "base_image_seq_len": 128, "max_image_seq_len": 4000},
    ],
)
def test_the_shift_is_the_pipelines_own_where_a_scheduler_is_silent(config: Any) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift

    defaults = {
        **{"base_shift": 0.5, "max_shift": 1.15},
        **{"base_image_seq_len": 256, "max_image_seq_len": 4096},
    }
    assert calculate_shift(4096) == pytest.approx(1.15)
    for tokens in (64, 256, 1000, 4096, 8192):
        known = defaults | config
        mu = calculate_shift(
            tokens,
            known["base_image_seq_len"],
            known["max_image_seq_len"],
            known["base_shift"],
            known["max_shift"],
        )
        assert shift_exponent(config, tokens) == pytest.approx(mu)


def test_training_and_previews_shift_alike_where_a_scheduler_is_silent(tiny: Path) -> None:
    """`flow_schedule_auto_shift` reads the same numbers as the pipelines do."""
    settings = Settings.model_construct(flow_schedule_auto_shift=True)
    assert sigmas_of(settings, tiny / "scheduler").scheduler is not None
    drawn = Sigmas(scheduler={}).draw(stream(1), target_tokens=4096)
    unshifted = Sigmas().draw(stream(1), target_tokens=4096)
    assert drawn == pytest.approx(shifted(unshifted, math.exp(1.15)))
