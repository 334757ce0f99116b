"""The demo's loss curve as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

SMOOTHING = 0.95
WIDTH, HEIGHT = 864, 504
LEFT, TOP, RIGHT, BOTTOM = 84, 52, 838, 442  # of the plot, in pixels
FINE = 3  # drawn this much larger, then reduced: smooth lines
PAPER, INK, GRID = "white", "#22201c", "#e6e2da"
EACH, SMOOTHED = "#c9c3b6", "#b3432b"


def draw_loss_curve(losses: Sequence[float], *, title: str) -> Image.Image:
    """Return a plot of the loss of every step (one at least) and of its exponential mean."""
    page = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
    draw = ImageDraw.Draw(page)
    highest = max(losses) * 1.05 or 1.0

    def at(step: int | float, loss: int | float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * (step - 1) / max(1, len(losses) - 1)
        return x * FINE, (BOTTOM - (BOTTOM - TOP) * loss / highest) * FINE

    def write(x: int | float, y: int | float, text: str, anchor: str, size: int = 15) -> None:
        font = ImageFont.load_default(size * FINE)
        draw.text((x * FINE, y * FINE), text, INK, font, anchor=anchor)

    def line(points: Iterable[tuple[int | float, int | float]], colour: str, width: int) -> None:
        draw.line(list(points), colour, width, joint="curve")

    for loss in ticks(highest):
        line([at(1, loss), at(len(losses), loss)], GRID, FINE)
        write(LEFT - 10, at(1, loss)[1] / FINE, f"{loss:g}", "rm")
    for step in ticks(len(losses)):
        write(at(max(step, 1), 0)[0] / FINE, BOTTOM + 10, f"{max(step, 1):g}", "mt")
    for values, colour, width in ((losses, EACH, 2), (smoothed(losses), SMOOTHED, 7)):
        line((at(step, loss) for step, loss in enumerate(values, 1)), colour, width)
    line([at(1, highest), at(1, 0), at(len(losses), 0)], INK, FINE)
    write((LEFT + RIGHT) / 2, TOP / 2, title, "mm", 18)
    write((LEFT + RIGHT) / 2, HEIGHT - 12, "step", "mb")
    write(LEFT, TOP - 8, "loss", "rb")
    for row, (name, colour) in enumerate((("each step", EACH), ("smoothed", SMOOTHED))):
        y = TOP + 14 + 22 * row
        line([((RIGHT - 116) * FINE, y * FINE), ((RIGHT - 90) * FINE, y * FINE)], colour, 3 * FINE)
        write(RIGHT - 82, y, name, "lm")
    return page.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def ticks(highest: int | float) -> Iterator[float]:
    """Yield four to ten round numbers from 0 to `highest`.

    >>> list(ticks(200)), list(ticks(0.55))
    ([0.0, 50.0, 100.0, 150.0, 200.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    """
    power = 10.0 ** math.floor(math.log10(highest / 4))
    step = max(times * power for times in (1, 2, 5) if times * power <= highest / 4)
    for number in range(math.floor(highest / step + 1e-9) + 1):
        yield float(f"{number * step:.10g}")


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential mean with weight 0.95, corrected for its start as Adam's moments."""
    mean, result = 0.0, []
    for step, value in enumerate(values, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        result.append(mean / (1 - SMOOTHING**step))
    return result
