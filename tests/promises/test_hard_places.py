"""cache-vae and cache-embeds where writing fails, and where the clock is wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cached_rows import KINDS, Rows, rows_in
from failing_writes import Trouble, full_disk
from small_run import draw, enter_copy, said, with_files

from qedit.pipeline.upkeep.caches import stores_in

STAGES = pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])


@pytest.fixture
def expected(cached_run: Path) -> Rows:
    return rows_in(cached_run)


@pytest.fixture
def here(cached_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with pairs, and nothing encoded, as the working directory."""
    folder = Path(shutil.copytree(cached_run, tmp_path / "here"))
    for kind in KINDS.values():
        shutil.rmtree(folder / "caches" / Path(kind[0]).parts[0])
    shutil.rmtree(folder / "caches" / "text_embeds", ignore_errors=True)
    monkeypatch.chdir(folder)
    return folder


def _completes(folder: Path, stage: str, expected: Rows) -> None:
    """A rerun makes what is missing and no more, and the rows are those of a plain run."""
    kept = rows_in(folder, stage)
    wanted = {key: row for key, row in expected.items() if key[0] in KINDS[stage]}
    assert said(with_files(stage, "--json"))["computed"] == len(wanted) - len(kept)
    rows = rows_in(folder, stage)
    assert rows.keys() == wanted.keys()
    assert all(np.array_equal(rows[key], row) for key, row in wanted.items())
    for kind in KINDS[stage]:
        assert all(store.verify() == [] for store in stores_in(folder / "caches" / kind))


# -- a full disk -----------------------------------------------------------------------------


@STAGES
@pytest.mark.parametrize("places", [1, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_a_disk_that_is_full_after_any_number_of_bytes(
    here: Path, tmp_path: Path, expected: Rows, stage: str, places: int
) -> None:
    bare = Path(shutil.copytree(here, tmp_path / "bare"))
    with Trouble(full_disk()) as none:
        with_files(stage)
    written = 2**62 - none.bytes
    assert written > sum(row.nbytes for key, row in expected.items() if key[0] in KINDS[stage])
    for place in range(places):
        shutil.rmtree(here / "caches")
        shutil.copytree(bare / "caches", here / "caches")
        with Trouble(full_disk(), bytes=written * (2 * place + 1) // (2 * places)):
            error = with_files(stage, expect=1).stderr
        assert "There is no space left to write" in error
        assert "what is finished is kept" in error
        _completes(here, stage, expected)


@contextlib.contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something at `folder` while the block runs; skip where that is not allowed."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        # lazily: shards that were read are still open
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@STAGES
def test_a_small_file_system(
    here: Path, expected: Rows, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = shutil.copytree(here / "caches", here / "kept")
    with _mounted(here / "caches", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        shutil.copytree(pairs, here / "caches", dirs_exist_ok=True)
        assert "GB left" in with_files(stage, expect=1).stderr  # and nothing was begun
        assert rows_in(here, stage) == {}
        used = shutil.disk_usage(here / "caches").used
        _remount(here / "caches", f"size={used + (24 << 10)}")
        with monkeypatch.context() as patch:
            roomy = shutil.disk_usage(here)._replace(free=1 << 40)
            patch.setattr(shutil, "disk_usage", lambda path: roomy)  # another fills it meanwhile
            error = with_files(stage, expect=1).stderr
            assert "There is no space left to write" in error
            _remount(here / "caches", "size=16m")
            _completes(here, stage, expected)


# -- a folder that may not be written ----------------------------------------------------------


@STAGES
def test_a_read_only_folder(here: Path, expected: Rows, stage: str) -> None:
    before = sorted(here.rglob("*"))
    with _mounted(here / "caches", "--bind", str(here / "caches")):
        _remount(here / "caches", "bind,ro")
        error = with_files(stage, expect=1).stderr
        assert "may not be written" in error
        assert str(here / "caches") in error or "caches/" in error
        with_files("status")
    assert sorted(here.rglob("*")) == before
    _completes(here, stage, expected)


@STAGES
def test_full_caches_that_are_read_only_will_do(
    cached_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    folder = enter_copy(cached_run, tmp_path / "full", monkeypatch)
    with_files(stage)  # it is another run than the one that it is a copy of
    with _mounted(folder / "caches", "--bind", str(folder / "caches")):
        _remount(folder / "caches", "bind,ro")
        assert said(with_files(stage, "--json"))["computed"] == 0
        with_files("verify")


def test_a_run_trains_on_read_only_caches_and_says_that_nobody_knows(
    cached_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = enter_copy(cached_run, tmp_path / "full", monkeypatch)
    one = ("train", "--set", "max_train_steps=1")
    with_files(*one, "--dry-run")  # what the weights' digest is has been remembered
    with _mounted(folder / "caches", "--bind", str(folder / "caches")):
        _remount(folder / "caches", "bind,ro")
        warned = with_files(*one).stderr
        assert "may not be written" in warned
        assert "nothing there records that this run trains on these caches" in warned


# -- a clock that jumps --------------------------------------------------------------------------

YEARS = 10 * 365 * 86400.0


@pytest.mark.parametrize(
    "jump",
    [pytest.param(-YEARS, marks=pytest.mark.full, id="back"), pytest.param(YEARS, id="forward")],
)
def test_a_clock_that_jumps_makes_nothing_stale_trusted_and_nothing_fail(
    here: Path, expected: Rows, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    now, now_ns = time.time, time.time_ns
    later = now() + 5 * YEARS
    for path in here.glob("*/p*.png"):
        os.utime(path, (later, later))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + jump)
        patch.setattr(time, "time_ns", lambda: now_ns() + int(jump * 1e9))
        with_files("pair")
        for stage in KINDS:
            _completes(here, stage, expected)
        # other pictures with the same time, and with an earlier one, while the clock is wrong
        draw(here / "edited" / "p1.png", (128, 72), seed=999)
        os.utime(here / "edited" / "p1.png", (later, later))
        draw(here / "edited" / "p2.png", (72, 128), seed=998)
        os.utime(here / "edited" / "p2.png", (1.0, 1.0))
        assert _latents_made() == 2
        assert _latents_made() == 0
    # the clock is right again
    assert _latents_made() == 0
    draw(here / "edited" / "p3.png", (96, 96), seed=997)
    assert _latents_made() == 1
    with_files("verify")


def _latents_made() -> int:
    with_files("pair")
    return int(said(with_files("cache-vae", "--json"))["computed"])
