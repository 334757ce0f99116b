"""How long a step of this run takes, as its metrics say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

METRICS_FILE = "metrics.jsonl"
RECENT_STEPS = 200


def measured_seconds(output_dir: Path) -> float | None:
    """The median of the last steps' times in this run's metrics."""
    path = output_dir / METRICS_FILE
    if not path.is_file():
        return None
    times = list(_seconds_in(path))[-RECENT_STEPS:]
    return median(times) if times else None


def _seconds_in(path: Path) -> Iterator[float]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            seconds = json.loads(line).get("seconds")
        except (ValueError, AttributeError):
            continue  # a line cut off by a crash
        if isinstance(seconds, (int, float)) and seconds > 0:
            yield float(seconds)
