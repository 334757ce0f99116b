"""A project folder as qedit left it at commit eb5e489: every later version must go on with it.

tests/golden/make_run.py says what is in it. It is unpacked anew for every test, in another folder
than the one it was made in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_rows import rows_here
from make_run import ARCHIVE, EXPECTED, FOLDER, arithmetic
from safetensors.torch import load_file
from small_run import loaded, qedit, said

from qedit.stages.stores.bfloat16 import tensor_of
from qedit.stages.stores.moves import known_id
from qedit.stages.stores.run import Run

FIRST = ("--config", "config.json", "--data", "data.json")
SECOND = ("--config", "config-2.json", "--data", "data-2.json")
STAGES = ("pair", "cache-vae", "cache-embeds", "cache-base")
# what differs between machines, and not in what was learned
OF_THE_MACHINE = ("seconds", "data_wait_seconds", "memory_bytes")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder, as the working directory."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / FOLDER)
    return tmp_path / FOLDER


@pytest.mark.parametrize("files", [FIRST, SECOND], ids=["int8", "bf16"])
def test_every_stage_finds_its_results_and_makes_none(
    project: Path, files: tuple[str, ...]
) -> None:
    for stage in STAGES:
        outcome = said(qedit(stage, *files, "--json"))
        assert (outcome["computed"], outcome["failed"]) == (0, 0), stage
        assert outcome["kept"] == outcome["wanted"] > 0, stage


@pytest.mark.parametrize("files", [FIRST, SECOND], ids=["int8", "bf16"])
def test_every_checksum_holds(project: Path, files: tuple[str, ...]) -> None:
    assert said(qedit("verify", *files, "--json"))["damaged"] == []


def test_gc_takes_the_rows_of_the_deleted_sample_and_nothing_else(project: Path) -> None:
    qedit("pair", *FIRST)
    qedit("pair", *SECOND)
    listed = said(qedit("gc", *FIRST, "--json"))
    assert listed["bytes"] > 0
    removed = said(qedit("gc", *FIRST, "--yes", "--json"))
    assert removed["bytes"] == listed["bytes"]
    assert said(qedit("gc", *FIRST, "--yes", "--json"))["bytes"] == 0
    for files in (FIRST, SECOND):
        test_every_stage_finds_its_results_and_makes_none(project, files)
        test_every_checksum_holds(project, files)


def test_training_goes_on_to_the_same_bits(project: Path) -> None:
    assert known_id(project / "out") == ""  # it was made before there were ids
    outcome = _run(*FIRST, "--set", "max_train_steps=4")
    assert known_id(project / "out") != ""
    assert (outcome["stage"], outcome["kept"], outcome["computed"]) == ("train", 2, 2)
    expected = project / "expected"
    ours, theirs = arithmetic(), load_file(expected / "arithmetic.safetensors")
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in EXPECTED:
        if name.endswith(".safetensors"):
            made, golden = load_file(project / "out" / name), load_file(expected / name)
            assert made.keys() == golden.keys()
            for key in golden:
                if same:
                    assert torch.equal(made[key], golden[key]), (name, key)
                else:  # this processor's float32 arithmetic has other last bits
                    torch.testing.assert_close(made[key], golden[key], rtol=1e-3, atol=1e-5)
    if same:
        assert _metrics(project / "out") == _metrics(expected)


def test_rows_that_are_lost_are_made_as_the_run_began(project: Path) -> None:
    """Its recipes were replaced since: Pillow resized for the text encoder."""
    said_before = " ".join(qedit("status", *FIRST).stdout.split())
    assert said_before.count("by an earlier recipe, with which this run goes on") == 3
    before = rows_here()
    shutil.rmtree(Run(loaded()).stores.prefixes.stores()[0].path)
    assert said(qedit("cache-embeds", *FIRST, "--json"))["prefixes_computed"] > 0
    for key, row in rows_here().items():
        made, golden = (tensor_of(bits).float() for bits in (row, before[key]))
        # with torchvision's kernel they would be up to a tenth apart
        assert (made - golden).abs().max() <= 0.01 * golden.abs().max(), key


def test_a_finished_run_has_nothing_to_do(project: Path) -> None:
    outcome = _run(*SECOND)
    assert (outcome["stage"], outcome["kept"], outcome["computed"]) == ("train", 1, 0)


def _run(*arguments: str) -> dict[str, Any]:
    """What the last stage of `qedit run` says, in a process of its own with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "qedit.pipeline", "run", *arguments, "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    last: dict[str, Any] = json.loads(done.stdout)["stages"][-1]
    return last


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in OF_THE_MACHINE}
        for line in lines
    ]
