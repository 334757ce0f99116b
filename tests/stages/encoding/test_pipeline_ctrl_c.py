"""Ctrl-C in cache-embeds, SIGTERM and SIGHUP: once and twice, as signals to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted_stage import SLOW_SECONDS
from paths import SUPPORT
from small_run import make_run, said, with_files

# each process imports torch
pytestmark = pytest.mark.full

WANTED = 4 + 8  # a prefix for each pair, and its tails: the caption's and the null caption's


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_run(tmp_path, flavour="edit-v2")
    monkeypatch.chdir(folder)
    with_files("pair")
    return folder


def _started(what: str, marker: Path) -> subprocess.Popen[str]:
    """cache-embeds in its second batch (or writing its second part), where it stays."""
    script = SUPPORT / "interrupted_stage.py"
    files = ["--config", "config.json", "--data", "data.json", "--text-batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, str(script), what, "2", str(marker), "cache-embeds", *files],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if marker.exists():
            return process
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it never came so far")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_ends_the_part_in_work_and_says_what_was_kept(here: Path, number: int) -> None:
    process = _started("encodes", here / "marker")
    time.sleep(0.5)  # what was handed over is written
    process.send_signal(number)
    _, errors = process.communicate(timeout=SLOW_SECONDS)
    assert process.returncode == 128 + number, errors
    assert "were made and are kept; the part in work is given up" in errors
    assert "the same command goes on from there" in errors
    assert list((here / "caches").rglob("claims/*.json")) == []
    again = said(with_files("cache-embeds", "--json"))
    assert 0 < again["kept"] < WANTED
    assert again["kept"] + again["computed"] == WANTED
    assert f"{again['kept']} embeds were made and are kept" in errors
    with_files("verify")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_twice_leaves_at_once(here: Path, second: int) -> None:
    """The first waits until what was handed over is written; that takes a minute here."""
    process = _started("writes", here / "marker")
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(second)
    _, errors = process.communicate(timeout=SLOW_SECONDS)
    assert time.monotonic() - started < SLOW_SECONDS / 3, "it waited for the part in work"
    assert process.returncode == -second, errors
    again = said(with_files("cache-embeds", "--json"))
    assert again["kept"] + again["computed"] == WANTED
    with_files("verify")
