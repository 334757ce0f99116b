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


def _history(folder: Path, *, steps: int = 4) -> Path:
    for step in range(1, steps + 1):
        append_metrics(folder, {"step": step, "loss": 0.5, "seconds": 1.0})
    return folder / "metrics.jsonl"


def test_a_damaged_line_is_left_out_and_the_file_kept_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = _history(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b'{"step": 2, "l\xffss": 0.5}\n', *lines[2:]])
    log.write_bytes(damaged)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 4]
    cut_metrics(tmp_path, after_step=4)
    assert log.read_bytes() == b"".join([lines[0], *lines[2:]])
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
    assert f"{log} lacks 1 of 4 steps." in caplog.text


@pytest.mark.parametrize("left", [b"", bytes(200), b'{"step": 1, "lo'])
def test_a_history_that_is_lost_is_said_and_kept_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes
) -> None:
    log = _history(tmp_path)
    log.write_bytes(left)
    cut_metrics(tmp_path, after_step=4)
    assert f"{log} lacks 4 of 4 steps." in caplog.text
    append_metrics(tmp_path, {"step": 5})
    assert log.read_bytes() == b'{"step": 5}\n'
    aside = tmp_path / "metrics.jsonl.damaged"
    assert (aside.read_bytes() if aside.exists() else b"") == left


def test_a_folder_in_its_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_metrics(tmp_path) == []
    cut_metrics(tmp_path, after_step=0)
    append_metrics(tmp_path, {"step": 1})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_lines_of_other_types_are_no_lines(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": "1"}\n{"step": 1, "seconds": "a"}\n{"step": 1, "held_out": [2]}\n')
    assert read_metrics(tmp_path) == []


def test_a_crash_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = _history(tmp_path)
    log.write_bytes(log.read_bytes()[:-5])
    cut_metrics(tmp_path, after_step=3)
    assert not caplog.text
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
