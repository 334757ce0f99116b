"""Changed pictures after a run, from the command line: what it costs, what is said, what stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors.torch import load_file
from small_run import cache_rows, draw, enter_copy, said, with_files
from training import LORA

from qedit.stages.models.checkpoint import digests

ONE_EACH = ("--set", "checkpoint_step_interval=1", "--set")
TWO, FOUR = (*ONE_EACH, "max_train_steps=2"), (*ONE_EACH, "max_train_steps=4")
GOES_ON = (*FOUR, "--set", "on_changed_data=continue")


@pytest.fixture
def trained(cached_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was trained for two steps; then one picture was replaced, and a pair added."""
    folder = enter_copy(cached_run, tmp_path / "here", monkeypatch)
    cache_rows()
    with_files("train", *TWO)
    draw(folder / "edited" / "p0.png", (96, 96), 50)
    for number, place in ((60, "edited"), (61, "reference-a")):
        draw(folder / place / "p9.png", (96, 96), number)
    (folder / "edited" / "p9.txt").write_text("make it new\n")
    return folder


def _rows() -> int:
    return int(said(with_files("gc", "--json"))["rows"])


def test_the_refusal_comes_after_pair_and_before_anything_else_is_opened(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(*given: object, **named: object) -> NoReturn:
        raise AssertionError("a model is hashed, as it is before its first use")

    for weights in (trained / "model").rglob("*.safetensors"):
        weights.touch()  # what is remembered of it does not count any more
    monkeypatch.setattr(digests, "_digests", hashed)
    with pytest.raises(AssertionError, match="hashed"):
        with_files("cache-vae")
    for command in (("run",), ("train", "--prepare"), ("train",), ("train", "--dry-run")):
        error = with_files(*command, *FOUR, expect=3).stderr
        assert "dataset edited: 1 pair added, 1 pair changed" in error
        assert "--set on_changed_data=continue" in error
        assert f"init_lora={(trained / 'out' / LORA).resolve()}" in error
    assert len(list(Path("out").glob("checkpoint-*"))) == 2


def test_former_rows_stay_while_a_checkpoint_needs_them(trained: Path) -> None:
    stages = said(with_files("run", *GOES_ON, "--json"))["stages"]
    # one target replaced; the new target with its reference; the new prefix; its tails
    assert [stage["computed"] for stage in stages[1:3]] == [3, 3]
    assert stages[-1]["computed"] == 2
    clean = load_file(Path("out", LORA))
    assert json.loads(Path("out/run.json").read_text())["history"][1]["from_step"] == 3
    with_files("gc", "--yes")
    for step in (2, 3, 4):
        shutil.rmtree(f"out/checkpoint-{step}")
    assert said(with_files("train", *FOUR, "--json"))["computed"] == 3
    assert all(tensor.equal(clean[name]) for name, tensor in load_file(Path("out", LORA)).items())
    assert _rows() == 0
    shutil.rmtree("out/checkpoint-1")
    assert _rows() == 1, "the target that was replaced"
    assert len(said(with_files("gc", "--yes", "--json"))["files"]) >= 1
    assert len(list(Path("caches/pairs/edited").glob("*/pairs-*.parquet"))) == 1
    with_files("verify")


def test_rows_of_another_run_stay_while_its_checkpoints_need_them(trained: Path) -> None:
    with_files("run", *GOES_ON)
    other = ("--set", "output_dir=out2", "--json")
    assert said(with_files("gc", *other))["rows"] == 0
    for step in (1, 2):
        shutil.rmtree(f"out/checkpoint-{step}")
    assert said(with_files("gc", *other))["rows"] == 1
