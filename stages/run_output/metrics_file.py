"""metrics.jsonl: one line for each step, evaluation and preview of a run, as JSON objects.

`train` writes it; the page, `plan` and the demo read it. A line that a crash cut short, or that
is being written, is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from ...cache.files.atomic import append_line, write_text

METRICS_FILE = "metrics.jsonl"
RECENT_STEPS = 200


def append_metrics(output_dir: Path, values: Mapping[str, Any]) -> None:
    """Append a line with `values`, which hold no NaN and no infinity."""
    append_line(output_dir / METRICS_FILE, json.dumps(values, allow_nan=False))


def read_metrics(output_dir: Path, *, having: str = "step") -> list[dict[str, Any]]:
    """Return the lines that have the key `having`, in their order; none without a file."""
    lines = (_parsed(line) for line in _lines(output_dir) if f'"{having}"' in line)
    return [line for line in lines if line is not None and having in line]


def cut_metrics(output_dir: Path, *, after_step: int) -> None:
    """Remove the lines beyond `after_step`, which will be written again, and unreadable ones."""
    lines, beyond = _lines(output_dir), after_step + 1
    kept = [line for line in lines if (_parsed(line) or {}).get("step", beyond) < beyond]
    if kept != lines:
        write_text(output_dir / METRICS_FILE, "".join(kept))


def step_seconds(output_dir: Path) -> float | None:
    """Return the median time in seconds of the newest steps; None where no step was made."""
    times = [line["seconds"] for line in read_metrics(output_dir, having="seconds")]
    return median(times[-RECENT_STEPS:]) if times else None


def _lines(output_dir: Path) -> list[str]:
    path = output_dir / METRICS_FILE
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
