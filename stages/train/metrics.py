"""metrics.jsonl: one line a step, each step once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...cache.atomic import write_text

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """The run's curve on disk.

    Opening cuts off what lies beyond `step`: those steps are made (and logged) again.
    """

    def __init__(self, output_dir: Path, *, after_step: int) -> None:
        self.path = output_dir / METRICS_FILE
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        lines = text.splitlines(keepends=True)
        kept = "".join(line for line in lines if _is_kept(line, after_step))
        if kept != text:
            write_text(self.path, kept)

    def add(self, **values: Any) -> None:
        """Append one step's line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")


def _is_kept(line: str, step: int) -> bool:
    # a line without its end was cut off by a crash
    return line.endswith("\n") and json.loads(line)["step"] <= step
