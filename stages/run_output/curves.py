"""The curves of a run as the page draws them: a few hundred points each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_POINTS = 800  # of a curve: more than a screen has columns for it
PLAIN = ("loss", "lr", "grad_norm", "seconds", "data_wait_seconds", "memory_bytes")

Curve = list[tuple[int, float | int]]
"""Pairs of (step, value)."""


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return each plain curve by its name, the held-out loss among them as `held_out`."""
    curves: dict[str, Curve] = {
        name: [(line["step"], line[name]) for line in lines if _is_number(line.get(name))]
        for name in PLAIN
    }
    curves["held_out"] = [
        (line["step"], line["held_out"]["loss"])
        for line in lines
        if _is_number((line.get("held_out") or {}).get("loss"))
    ]
    return {name: thinned(curve) for name, curve in curves.items() if curve}


def by_sigma(lines: Sequence[Mapping[str, Any]], *, held_out: bool) -> dict[str, Curve]:
    """Return a curve for each noise level (or band), of the training or the held-out loss."""
    curves: dict[str, Curve] = defaultdict(list)
    for line in lines:
        found = (line.get("held_out") or {}).get("by_sigma") if held_out else None
        found = found if held_out else line.get("loss_by_sigma")
        for name, value in _named(found):
            curves[name].append((line["step"], value))
    return {name: thinned(curves[name]) for name in sorted(curves)}


def thinned(curve: Curve, *, most: int = MOST_POINTS) -> Curve:
    """Return at most `most` points: the means of neighbours, each at its last step."""
    if len(curve) <= most:
        return [(step, _short(value)) for step, value in curve]
    result: Curve = []
    for number in range(most):
        start, end = (at * len(curve) // most for at in (number, number + 1))
        values = [value for _, value in curve[start:end]]
        result.append((curve[end - 1][0], _short(sum(values) / len(values))))
    return result


def _named(found: Any) -> Iterator[tuple[str, float | int]]:
    if isinstance(found, Mapping):
        for name, value in found.items():
            if _is_number(value):
                yield str(name), value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float | int) -> float:
    return float(f"{value:.6g}")
