"""The demo's loss curve: a line that falls where the losses fall, between labelled axes."""

from __future__ import annotations

import numpy as np
import pytest

from qedit.pipeline.demo import curves
from qedit.pipeline.demo.curves import draw_loss_curve, smoothed, ticks


def test_the_curve_goes_where_the_losses_go() -> None:
    picture = np.asarray(draw_loss_curve([1.0] * 50 + [0.5] * 50, title="a run"), np.int64)
    red = np.abs(picture - [179, 67, 43]).sum(2) < 60
    grey = np.abs(picture - [201, 195, 182]).sum(2) < 40
    plot = picture.shape[0] * 0.8

    def height(line: np.ndarray, *, column: float) -> float:
        rows = np.flatnonzero(line[:, int(column * picture.shape[1])])
        return float(rows[rows > curves.TOP + 50].mean()) if len(rows) else float("nan")

    assert height(grey, column=0.9) - curves.TOP == pytest.approx(plot * 0.5, abs=plot * 0.05)
    assert height(red, column=0.6) < height(red, column=0.9) < height(grey, column=0.9)
    left, below = picture[:, : curves.LEFT], picture[curves.BOTTOM + 4 :]
    assert (left < 128).any(), "the losses stand beside the axis"
    assert (below < 128).any(), "the steps stand below the axis"


def test_ticks_are_round_numbers() -> None:
    assert list(ticks(200)) == [0, 50, 100, 150, 200]
    assert list(ticks(0.55)) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert list(ticks(1.26)) == [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]


def test_the_smoothed_curve_is_an_exponential_mean_corrected_for_its_start() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    # weights 0.05 * 0.95 and 0.05, over 1 - 0.95**2
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.0475 + 0.1) / 0.0975)


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0]])
def test_few_losses_are_drawn_as_well(losses: list[float]) -> None:
    assert draw_loss_curve(losses, title="short").size == (curves.WIDTH, curves.HEIGHT)
