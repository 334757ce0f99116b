"""metrics.jsonl, and what follows it: one line a step, each step once.

Beside the lines of steps there are lines of evaluations (`held_out`) and of previews
(`previews`). A number that is none (a loss of NaN) is null.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...cache.files.atomic import append_line, write_text
from .data.feed import Batch, padding_of
from .trackers import Tracker

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """The run's curves on disk, and in a tracker where there is one.

    Opening cuts off what lies beyond the checkpoint's step, and a line that a crash cut
    short: those steps are made (and logged) again.

    Args:
        after_step: of the checkpoint; None where the run begins.
    """

    def __init__(
        self, output_dir: Path, *, after_step: int | None, tracker: Tracker | None = None
    ) -> None:
        self.path, self._tracker = output_dir / METRICS_FILE, tracker
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        last = -1 if after_step is None else after_step
        kept = "".join(line for line in text.splitlines(keepends=True) if _is_kept(line, last))
        if kept != text:
            write_text(self.path, kept)

    def add(self, *, step: int, **values: Any) -> None:
        """Append a line about `step`."""
        append_line(self.path, json.dumps({"step": step, **values}, allow_nan=False))
        if self._tracker:
            self._tracker.add(step, dict(_flat(values)))


class Unheard:
    """The log of a process that has none: the first one of several speaks for all."""

    def add(self, *, step: int, **values: Any) -> None:
        """Say nothing."""


def was_measured(output_dir: Path, step: int) -> bool:
    """Whether the log has the held-out loss of `step`."""
    path = output_dir / METRICS_FILE
    if not path.is_file():
        return False
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return any(
        '"held_out"' in line and line.endswith("\n") and json.loads(line)["step"] == step
        for line in lines
    )


def padding_in(batches: Sequence[Batch]) -> float:
    """The share of tokens that are there only because others in their forward have more."""
    return round(padding_of(batches), 4)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU that torch has taken, elsewhere of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _is_kept(line: str, step: int) -> bool:
    # a line without its end was cut off by a crash
    return line.endswith("\n") and bool(json.loads(line)["step"] <= step)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in `values`, those inside others as "outer/inner"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)
