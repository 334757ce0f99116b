"""metrics.jsonl, and what follows it: one line a step, each step once.

Beside the lines of steps there are lines of evaluations (`held_out`) and of previews
(`previews`). A number that is none (a loss of NaN) is null.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..run_output.metrics_file import append_metrics, cut_metrics
from .trackers import Tracker


class Metrics:
    """Writes the run's numbers to metrics.jsonl, and to a tracker where there is one.

    Opening cuts off what lies beyond the checkpoint's step: those steps are made, and logged,
    again.

    Args:
        after_step: the checkpoint's step; None where the run begins.
    """

    def __init__(
        self, output_dir: Path, *, after_step: int | None, tracker: Tracker | None = None
    ) -> None:
        self._output_dir, self._tracker = output_dir, tracker
        cut_metrics(output_dir, after_step=-1 if after_step is None else after_step)

    def add(self, *, step: int, **values: Any) -> None:
        """Append a line about `step`."""
        append_metrics(self._output_dir, {"step": step, **values})
        if self._tracker:
            self._tracker.add(step, dict(_flat(values)))


class NullMetrics:
    """Writes nothing: of several processes the first one alone has a log."""

    def add(self, *, step: int, **values: Any) -> None:
        """Do nothing."""


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: on a GPU what torch has allocated, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in `values`, those of nested mappings as "outer/inner"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)
