"""metrics.jsonl has one reader, which leaves out lines that a crash has cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from qedit.stages.run_output.metrics_file import (
    append_metrics,
    cut_metrics,
    read_metrics,
    step_seconds,
)


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    append_metrics(tmp_path, {"step": 1, "loss": None, "note": "\u2028"})
    append_metrics(tmp_path, {"step": 1, "held_out": {"loss": 0.5}})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": None, "note": "\u2028"},
        {"step": 1, "held_out": {"loss": 0.5}},
    ]
    assert read_metrics(tmp_path, having="held_out") == [{"step": 1, "held_out": {"loss": 0.5}}]
    # a key of something inside is not one of the line
    assert [line["step"] for line in read_metrics(tmp_path, having="loss")] == [1]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_metrics(tmp_path, {"loss": float("nan")})


def test_a_line_that_was_cut_short_is_not_read_and_goes(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n'
    log.write_text(f'{whole}\x00\x00\n[3]\n{{"step": 3}}\n{{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    cut_metrics(tmp_path, after_step=2)
    assert log.read_text() == whole
    changed = log.stat().st_mtime_ns
    cut_metrics(tmp_path, after_step=2)
    assert log.stat().st_mtime_ns == changed


def test_the_time_of_a_step_is_the_median_of_the_newest(tmp_path: Path) -> None:
    assert step_seconds(tmp_path) is None
    for step in range(1, 304):
        append_metrics(tmp_path, {"step": step, "seconds": 9.0 if step < 104 else 2.0})
    append_metrics(tmp_path, {"step": 303, "held_out": {"loss": 0.5}})
    assert step_seconds(tmp_path) == 2.0
