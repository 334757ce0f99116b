"""The demo and the shipped examples, as a newcomer runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from small_run import qedit, said

from qedit.pipeline.demo import tour

# where the demo was run as it is; `.ci/run` says so, and otherwise a short one is made
WHOLE = os.environ.get("QEDIT_DEMO")
STEPS = 200 if WHOLE else 8
CHAPTERS = tour.CHAPTERS if WHOLE else (replace(tour.CHAPTERS[1], steps=STEPS),)
FLAVOURS = [chapter.flavour for chapter in CHAPTERS]
SHORT = f"""
from dataclasses import replace
from qedit.pipeline import cli
from qedit.pipeline.demo import tour
tour.CHAPTERS = (replace(tour.CHAPTERS[1], steps={STEPS}),)
cli.main(["demo"])
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo that was run in a process of its own, without the tests' checks."""
    if WHOLE:
        return Path(WHOLE)  # not a copy: those files would be new
    folder = tmp_path_factory.mktemp("newcomer")
    subprocess.run([sys.executable, "-c", SHORT], cwd=folder, check=True, capture_output=True)
    return folder / "qedit-demo"


@pytest.fixture
def work(shown: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shown.parent)
    monkeypatch.setattr(tour, "CHAPTERS", CHAPTERS)
    return shown


def metrics(work: Path, flavour: str) -> list[dict[str, Any]]:
    text = (work / "output" / flavour / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.skipif(not WHOLE, reason="QEDIT_DEMO names no whole demo, as .ci/run makes it")
@pytest.mark.full
def test_the_demo_trains_until_the_loss_has_clearly_fallen(work: Path) -> None:
    for flavour in FLAVOURS:
        losses = [line["loss"] for line in metrics(work, flavour) if "loss" in line]
        tenth = len(losses) // 10
        assert sum(losses[-tenth:]) < 0.85 * sum(losses[:tenth]), flavour


@pytest.mark.full
def test_the_demo_leaves_a_lora_a_curve_and_a_sheet(work: Path) -> None:
    for flavour in FLAVOURS:
        with safe_open(
            work / "output" / flavour / "pytorch_lora_weights.safetensors", "pt"
        ) as file:
            assert all(name.startswith("transformer.") for name in file.keys())  # noqa: SIM118
        with Image.open(work / flavour / "loss.png") as picture:
            assert min(picture.size) > 300
        output = work / "output" / flavour
        with Image.open(output / "previews" / f"step-{STEPS:06}" / "sheet.png") as picture:
            assert min(picture.size) > 600
        assert (output / "index.html").stat().st_size > 50_000


@pytest.mark.full
def test_little_of_what_the_demo_computes_is_padding(work: Path) -> None:
    for flavour in FLAVOURS:
        shares = [line["padding"] for line in metrics(work, flavour) if "padding" in line]
        assert len(shares) == STEPS
        assert 0 < sum(shares) / STEPS < 0.03


@pytest.mark.full
def test_a_second_demo_finds_everything_done(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    result = qedit("demo", "--json")
    assert [one["flavour"] for one in said(result)["chapters"]] == FLAVOURS
    lines = result.stderr.splitlines()
    assert sum("nothing to do" in line for line in lines) == 5 * len(CHAPTERS)
    after = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    # run.json says who looked last; the digest of a model that is no two seconds old, as on a fast
    # machine the demo's is when training looks at it, is remembered by the next one who looks
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"run.json", "model-digests.json"}


@pytest.mark.full
def test_pictures_that_were_deleted_are_drawn_again(work: Path) -> None:
    sheet = work / "output" / "edit-v2" / "previews" / f"step-{STEPS:06}" / "sheet.png"
    curve = work / "edit-v2" / "loss.png"
    for path in (sheet, curve):
        path.unlink()
    shown = said(qedit("demo", "--json"))["chapters"][-1]
    assert (work / shown["sheet"], work / shown["loss_curve"]) == (sheet, curve)
    assert sheet.is_file()
    assert curve.is_file()


@pytest.mark.full
def test_the_demo_does_not_take_over_a_folder_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    assert "--dir" in qedit("demo", "--dir", "mine", expect=2).stderr


@pytest.mark.parametrize(
    "flavour",
    [
        pytest.param("edit-v1", marks=pytest.mark.full),
        pytest.param("edit-v2", marks=pytest.mark.exhaustive),
        pytest.param("edit-v3", marks=pytest.mark.exhaustive),
    ],
)
def test_the_shipped_examples_run_on_the_tiny_model(
    flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("--set", "max_train_steps=2", "--set", "validation_disable=true")
    example = (f"example=qwen_image.{flavour}-lora", "--tiny", *sets)
    assert "qedit pair" in qedit("train", *example, expect=4).stderr
    found = said(qedit("train", "--prepare", *example, "--json"))
    assert [one["stage"] for one in found["stages"]] == [
        "pair",
        "cache-vae",
        "cache-embeds",
        "cache-base",
        "train",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["qedit-tiny"]
    shutil.rmtree(tmp_path / "qedit-tiny" / "output")
    assert json.loads(qedit("train", *example, "--json").stdout)["computed"] == 2
