"""`qedit status` says what is so of every dataset, and what to type next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_run import draw, make_run, said, with_files

from qedit.cache.files.free_space import tree_bytes


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pairs of one dataset, paired."""
    folder = make_run(tmp_path / "run", flavour="edit-v2")
    monkeypatch.chdir(folder)
    with_files("pair")
    return folder


def _results() -> dict[str, Any]:
    return {one["what"]: one for one in said(with_files("status", "--json"))["results"]}


def _add_dataset(folder: Path) -> None:
    """A second main dataset of one pair, whose reference is one of the first one's pictures."""
    draw(folder / "more" / "p0.png", (96, 96), seed=77)
    (folder / "more" / "p0.txt").write_text("make it new")
    data = json.loads((folder / "data.json").read_text())
    data.append({**data[0], "id": "more", "instance_data_dir": "more"})
    (folder / "data.json").write_text(json.dumps(data))


def test_each_dataset_has_a_line_of_its_own(run: Path) -> None:
    with_files("cache-vae")
    assert "datasets" not in _results()["latents"]  # one alone: the line is that of its rows
    _add_dataset(run)
    for stage in ("pair", "cache-embeds"):
        with_files(stage, "--on-reject", "skip")
    latents = _results()["latents"]
    counts = {one["what"]: (one["kept"], one["missing"]) for one in latents["datasets"]}
    # what both want is counted for each of them, and once in all
    assert counts == {"edited": (8, 0), "more": (1, 1)}
    assert (latents["kept"], latents["missing"]) == (8, 1)
    stores = (run / "caches" / "vae").glob("*/*/parts")
    files = {path.parents[1].name: tree_bytes(path.parent) for path in stores}
    sizes = {one["what"]: one["bytes"] for one in latents["datasets"]}
    assert sizes["edited"] == files["edited"] + files["reference-a"]
    assert sizes["more"] == files["reference-a"]
    lines = with_files("status").stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("latents "))
    assert lines[at + 1].startswith("  edited       8 of 8, complete, ")
    assert lines[at + 2].startswith("  more         1 of 2, 1 missing, ")


def test_what_cannot_be_counted_is_not_counted(run: Path) -> None:
    (run / "edited" / "p1.txt").write_text("turn it blue")
    lines = with_files("status").stdout.splitlines()
    assert lines[0] == "pairs          4 of 4, complete, edited"
    assert lines[1] == "pairs          the folders have changed in the meantime"
    unpaired = with_files("status", "--set", "cache_dir=nowhere").stdout
    assert "pairs          edited: There is no pairs table" in unpaired


def test_what_is_there_is_shown_without_its_pictures(run: Path) -> None:
    with_files("cache-vae")
    shutil.rmtree(run / "edited")
    told = with_files("status").stdout
    assert "latents        8 of 8, complete" in told
    assert "the folder edited does not exist" in told
    assert "Fix `instance_data_dir`" in told.splitlines()[-1]


def test_who_finds_another_run_is_not_told_to_train(run: Path) -> None:
    for stage in ("cache-vae", "cache-embeds", "train"):
        with_files(stage)
    *_, steps, do = with_files("status", "--set", "seed=3").stdout.splitlines()
    assert steps == "steps trained  out belongs to another run: seed: 42 there, 3 now"
    assert do.startswith("Choose another folder (`--set output_dir=")
