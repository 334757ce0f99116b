"""The curves of a run as the page draws them: a few hundred points each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_POINTS = 800  # of a curve: more than a screen has columns for it
PLAIN = ("loss", "lr", "grad_norm", "seconds", "data_wait_seconds", "memory_bytes", "held_out")

Curve = list[tuple[int, float | int]]
"""Pairs of (step, value)."""


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return each plain curve by its name, the held-out loss among them as `held_out`."""
    curves: dict[str, Curve] = defaultdict(list)
    for line in lines:
        held_out = (line.get("held_out") or {}).get("loss")
        for name, value in _numbers({**line, "held_out": held_out}):
            if name in PLAIN:
                curves[name].append((line["step"], value))
    return {name: thinned(curves[name]) for name in PLAIN if name in curves}


def by_sigma(lines: Sequence[Mapping[str, Any]], *, held_out: bool) -> dict[str, Curve]:
    """Return a curve for each noise level (or band of them), of the training or held-out loss."""
    curves: dict[str, Curve] = defaultdict(list)
    for line in lines:
        losses = (line.get("held_out") or {}).get("by_sigma")
        for name, value in _numbers(losses if held_out else line.get("loss_by_sigma")):
            curves[name].append((line["step"], value))
    return {name: thinned(curves[name]) for name in sorted(curves)}


def thinned(curve: Curve, *, most: int = MOST_POINTS) -> Curve:
    """Return at most `most` points: means of neighbours, at their last step; ends stay."""
    if len(curve) <= most:
        return [(step, _short(value)) for step, value in curve]
    result: Curve = []
    for number in range(most):
        start, end = (at * len(curve) // most for at in (number, number + 1))
        values = [value for _, value in curve[start:end]]
        result.append((curve[end - 1][0], _short(sum(values) / len(values))))
    return result


def _numbers(values: Any) -> Iterator[tuple[str, float | int]]:
    """Yield the items of a mapping whose values are numbers; none of anything else."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield str(name), value


def _short(value: float | int) -> float:
    return float(f"{value:.6g}")
