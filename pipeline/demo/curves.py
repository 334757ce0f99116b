"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

SMOOTHING = 0.95


def draw_loss_curve(losses: Sequence[float], file: BinaryIO, *, title: str) -> None:
    """Draw the loss of every step, and its exponential mean, as a PNG into `file`."""
    # the object interface needs no display and leaves no global state behind
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#c9c3b6", linewidth=0.8, label="each step")
    axes.plot(steps, smoothed(losses), color="#b3432b", linewidth=2.0, label="smoothed")
    axes.set(title=title, xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(color="#eeeae2")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, format="png")


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential mean with weight 0.95, corrected for its start (as Adam's moments are)."""
    mean, result = 0.0, []
    for step, value in enumerate(values, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        result.append(mean / (1 - SMOOTHING**step))
    return result
