"""Sigmas have the distribution and the shift that the settings ask for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qedit.stages.train.data.seeds import stream
from qedit.stages.train.data.sigmas import Sigmas, shifted


def drawn(sigmas: Sigmas, *, tokens: int = 1024, count: int = 6_000) -> np.ndarray:
    random = stream(0, "test")
    return np.array([sigmas.draw(random, target_tokens=tokens) for _ in range(count)])


def test_sigmoid_sigmas_are_the_sigmoid_of_a_normal_number() -> None:
    for scale in (0.5, 1.0, 2.0):
        sigmas = drawn(Sigmas(scale=scale))
        # the quantiles of sigmoid(scale*z), from those of the normal distribution
        for share, z in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
            expected = 1 / (1 + math.exp(-scale * z))
            assert np.quantile(sigmas, share) == pytest.approx(expected, abs=0.02)


def test_a_scale_beyond_all_floats_is_a_coin() -> None:
    """e to the power of 1e4 is no float, and drawing must go on all the same."""
    sigmas = drawn(Sigmas(scale=1e4), count=500)
    assert np.isin(np.round(sigmas, 6), (0.0, 1.0)).mean() > 0.99
    assert sigmas.mean() == pytest.approx(0.5, abs=0.1)


def test_uniform_and_beta_sigmas_have_their_moments() -> None:
    uniform = drawn(Sigmas(distribution="uniform"))
    assert uniform.mean() == pytest.approx(1 / 2, abs=0.01)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.003)
    beta = drawn(Sigmas(distribution="beta", alpha=2.0, beta=5.0))
    assert beta.mean() == pytest.approx(2 / 7, abs=0.01)
    assert beta.var() == pytest.approx(2 * 5 / (7**2 * 8), abs=0.003)


def test_every_sigma_lies_between_picture_and_noise() -> None:
    for distribution in ("sigmoid", "uniform", "beta"):
        sigmas = drawn(Sigmas(distribution=distribution, shift=3.0), count=2000)
        assert 0 < sigmas.min() < sigmas.max() < 1


def test_the_static_shift_of_the_guide() -> None:
    assert shifted(0.5, 1.73) == pytest.approx(0.6337, abs=5e-5)
    assert shifted(0.3, 1.0) == 0.3
    assert (shifted(0.0, 1.73), shifted(1.0, 1.73)) == (0.0, 1.0)
    plain, moved = Sigmas(), Sigmas(shift=1.73)
    for place in range(5):
        before = plain.draw(stream(1, place), target_tokens=64)
        after = moved.draw(stream(1, place), target_tokens=64)
        assert after == pytest.approx(1.73 * before / (1 + 0.73 * before))


QWEN = {  # of the published scheduler_config.json
    **{"base_shift": 0.5, "max_shift": 0.9},
    **{"base_image_seq_len": 256, "max_image_seq_len": 8192},
}


def test_the_auto_shift_is_that_of_inference() -> None:
    plain = Sigmas().draw(stream(3), target_tokens=1)
    for tokens, shift in ((256, math.exp(0.5)), (32 * 32, 1.714), (64 * 64, 2.001)):
        drawn = Sigmas(scheduler=QWEN).draw(stream(3), target_tokens=tokens)
        assert drawn == pytest.approx(shifted(plain, shift), abs=1e-4)


def test_a_larger_target_gets_more_noise() -> None:
    sigmas = Sigmas(scheduler=QWEN)
    small = sigmas.draw(stream(3), target_tokens=256)
    large = sigmas.draw(stream(3), target_tokens=8192)
    ratio = large / (1 - large) / (small / (1 - small))
    assert ratio == pytest.approx(math.exp(0.9 - 0.5))
