"""Lays out a small run (drawn pictures, a tiny checkpoint, both files), and runs commands on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tiny_checkpoints import tiny_copy

from qedit.config.loading import Configuration, load
from qedit.pipeline.cli import main

AREA = 64 * 64
SIZES = ((96, 96), (128, 72), (72, 128), (96, 96))


def draw(path: Path, size: tuple[int, int], seed: int) -> None:
    """A smooth coloured picture, another one for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)


def make_run(
    folder: Path, *, flavour: str = "edit-v1", references: int = 1, **settings: Any
) -> Path:
    """Lay out pictures, captions, a tiny model and both files under `folder`."""
    model = tiny_copy(folder / "model", flavour, vae_area=AREA, vl_area=AREA)
    names = [f"reference-{letter}" for letter in "abc"[:references]]
    for number, size in enumerate(SIZES):
        draw(folder / "edited" / f"p{number}.png", size, number)
        (folder / "edited" / f"p{number}.txt").write_text(f"make it number {number}\n")
        for place, name in enumerate(names):
            draw(folder / name / f"p{number}.png", size, 100 * (place + 1) + number)
    config = {
        "model_type": "lora",
        "model_family": "qwen_image",
        "model_flavour": flavour,
        "pretrained_model_name_or_path": str(model.relative_to(folder)),
        "mixed_precision": "no",
        "max_train_steps": 3,
        "cache_dir": "caches",
        "output_dir": "out",
        "validation_disable": True,
        **settings,
    }
    data: list[dict[str, Any]] = [
        {
            "id": "edited",
            "type": "local",
            "instance_data_dir": "edited",
            "caption_strategy": "textfile",
            "resolution": 64,
            "conditioning_data": names,
        }
    ]
    for name in names:
        data.append(
            {
                "id": name,
                "type": "local",
                "dataset_type": "conditioning",
                "conditioning_type": "reference_strict",
                "instance_data_dir": name,
                "resolution": 64,
            }
        )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "data.json").write_text(json.dumps(data, indent=2))
    return folder


def qedit(*arguments: str, expect: int = 0) -> Result:
    """Run one command in this process; `expect` is its exit code."""
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, f"{result.exit_code}:\n{result.output}\n{result.stderr}"
    return result


def with_files(command: str, *arguments: str, expect: int = 0) -> Result:
    """Run one command on config.json and data.json of the working directory."""
    return qedit(
        command, "--config", "config.json", "--data", "data.json", *arguments, expect=expect
    )


def cache_rows(*options: str) -> None:
    """Pair and encode what config.json and data.json of the working directory name."""
    for stage in ("pair", "cache-vae", "cache-embeds"):
        with_files(stage, *options)


def loaded(*sets: str) -> Configuration:
    """Read config.json and data.json of the working directory, with these settings changed."""
    return load(Path("config.json"), Path("data.json"), sets=sets)


def enter_copy(run: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a run's folder to `target`, which becomes the working directory."""
    shutil.copytree(run, target)
    monkeypatch.chdir(target)
    return target


def said(result: Result) -> dict[str, Any]:
    """The one JSON object on standard output."""
    (line,) = result.stdout.splitlines()
    value: dict[str, Any] = json.loads(line)
    return value
