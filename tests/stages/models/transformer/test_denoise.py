"""The noise schedule and guidance of the previews."""

from __future__ import annotations

import math

import pytest
import torch

from qedit.cache.errors import WrongUse
from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.timesteps import shift_exponent
from qedit.stages.models.transformer.denoise import (
    guide,
    load_scheduler,
    set_sigmas,
)
from qedit.stages.models.transformer.transformer import pack


@pytest.mark.parametrize(("side", "shift"), [(512, 1.714), (1024, 2.001)])
def test_the_shift_grows_with_the_target(side: int, shift: float, checkpoint: Checkpoint) -> None:
    config = load_scheduler(checkpoint.scheduler).config
    assert math.exp(shift_exponent(config, (side // 16) ** 2)) == pytest.approx(shift, abs=5e-4)


def test_the_schedule_runs_from_one_to_its_terminal_value(checkpoint: Checkpoint) -> None:
    sigmas = set_sigmas(load_scheduler(checkpoint.scheduler), steps=5, target_tokens=4096)
    assert len(sigmas) == 6
    assert sigmas[0] == 1
    assert sigmas[-2] == pytest.approx(0.02)
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


def test_a_schedule_of_one_step_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(WrongUse, match="validation_num_inference_steps"):
        set_sigmas(load_scheduler(checkpoint.scheduler), steps=1, target_tokens=4096)


def test_guidance_keeps_each_tokens_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 1, 16, 4, 6, generator=generator)
    guided = guide(positive, negative, guidance=4.0)
    norms = [pack(latents).norm(dim=-1) for latents in (guided, positive)]
    assert torch.allclose(*norms)
    direction = pack(negative + 4.0 * (positive - negative))
    assert torch.allclose(
        torch.cosine_similarity(pack(guided), direction, dim=-1), torch.ones(1, 6)
    )
