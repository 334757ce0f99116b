"""metrics.jsonl: one line for each step, evaluation and preview of a run, as JSON objects.

`train` writes it; the page, `plan` and the demo read it. A line that a crash cut short, or that
is being written, is not read. It decides nothing: what is damaged in it is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from ...cache.errors import Broken
from ...cache.files.atomic import append_line, write_bytes
from ...cache.files.decides_nothing import LOG, read_if_whole, set_aside
from ...cache.files.json_file import object_in

METRICS_FILE = "metrics.jsonl"
RECENT_STEPS = 200


def append_metrics(output_dir: Path, values: Mapping[str, Any]) -> None:
    """Append a line with `values`, which hold no NaN and no infinity."""
    append_line(output_dir / METRICS_FILE, json.dumps(values, allow_nan=False))


def read_metrics(output_dir: Path, *, having: str = "step") -> list[dict[str, Any]]:
    """Return the lines that have the key `having`, in their order; none without a file."""
    wanted = f'"{having}"'.encode()
    lines = (_parsed(line) for line in _lines(output_dir) if wanted in line)
    return [line for line in lines if line is not None and having in line]


def cut_metrics(output_dir: Path, *, after_step: int) -> None:
    """Remove the lines beyond `after_step`, which will be written again, and unreadable ones.

    Where steps are lost, a line says so, and the file that cannot be read is kept under another
    name.
    """
    path, beyond = output_dir / METRICS_FILE, after_step + 1
    parsed = [(line, _parsed(line)) for line in _lines(output_dir)]
    known = [(line, values) for line, values in parsed if values and values["step"] < beyond]
    lost = after_step - len({values["step"] for _, values in known if "loss" in values})
    if lost > 0:
        LOG.warning(f"{path} lacks {lost} of {after_step} steps. The training goes on as before.")
    bad = [line for line, values in parsed if values is None]
    # a last line without an end is what a crash leaves
    is_damaged = any(line.endswith(b"\n") for line in bad) or (lost > 0 and bool(bad))
    is_unread = not parsed and path.exists() and not (path.is_file() and path.stat().st_size == 0)
    if is_damaged or is_unread:
        set_aside(path)
    if len(known) < len(parsed):
        write_bytes(path, b"".join(line for line, _ in known))


def step_seconds(output_dir: Path) -> float | None:
    """Return the median time in seconds of the newest steps; None where no step was made."""
    times = [line["seconds"] for line in read_metrics(output_dir, having="seconds")]
    return median(times[-RECENT_STEPS:]) if times else None


def _lines(output_dir: Path) -> list[bytes]:
    path = output_dir / METRICS_FILE
    return read_if_whole(path, lambda data: data.splitlines(keepends=True), [])


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the values in a line; None if it is not as it was written."""
    try:
        values = object_in(line) if line.endswith(b"\n") else {}
    except Broken:
        return None
    is_whole = (
        isinstance(values.get("step"), int)
        and isinstance(values.get("seconds", 0.0), int | float)
        and isinstance(values.get("held_out", {}), dict)
    )
    return values if is_whole else None
