"""Finds the code blocks of the documents, and runs them as a reader would."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from paths import ROOT
from small_run import AREA, draw

from qedit.config.comments import parse
from qedit.pipeline.cli import main
from qedit.stages.models.tiny.tiny import make_tiny

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# stands in the text right before a block that cannot run where the tests run, for readers too
NOT_RUN = re.compile(r"\*\(Not run by the tests: ([^)]+)\)\*\n\n$")
RUN_BY_CI = re.compile(r"<!-- ci: \w+ -->\n$")
PICTURE_FOLDERS = ("edited", "original", "style", "held-out/edited", "held-out/original")
# what a reader's run needs to be small: a tiny model, two steps
SMALL = {
    "max_train_steps": "2",
    "validation_num_inference_steps": "2",
    "validation_resolution": "64x64",
    "num_eval_images": "1",
    "checkpoint_step_interval": "1",
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a document, at a line, in a language."""

    document: str
    line: int
    language: str
    text: str
    not_run: str = ""
    run_by_ci: bool = False

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> Iterator[Block]:
    """The blocks of `document`, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        before = text[: found.start()]
        reason = NOT_RUN.search(before)
        yield Block(
            document,
            before.count("\n") + 1,
            found[1],
            found[2],
            reason[1] if reason else "",
            bool(RUN_BY_CI.search(before)),
        )


def lay_out_pictures(folder: Path) -> None:
    """The folders that the guides speak of, with a few small pictures and captions."""
    for number, name in enumerate(PICTURE_FOLDERS):
        for place, size in enumerate(((96, 96), (128, 72), (96, 96))):
            draw(folder / name / f"cat-0{place + 1}.png", size, 10 * number + place)
            if name.endswith("edited"):
                caption = folder / name / f"cat-0{place + 1}.txt"
                caption.write_text(f"Make the cat wear hat number {place}.\n")


def run_bash(block: Block, models: Path) -> str:
    """Run a block of shell lines in the working directory; `qedit` in this process."""
    said = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "qedit":
            said.append(_run_qedit(block, [*words[1:], *_smaller(words[1:], models)]))
        elif words[0] == "cd":
            os.chdir(words[1])
        else:
            done = subprocess.run(
                ["bash", "-euc", line], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}: {line}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
    return "\n".join(said)


def _run_qedit(block: Block, arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{block}: qedit {shlex.join(arguments)}\n{result.output}"
    return str(result.output)


def _smaller(words: list[str], models: Path) -> list[str]:
    """Settings that put the tiny model in the place of the real one."""
    if "--config" not in words:
        return []
    given = {word.partition("=")[0] for word in words}
    config = parse(Path(words[words.index("--config") + 1]).read_text(encoding="utf-8"))
    data = config.get("data_backend_config")
    data = words[words.index("--data") + 1] if "--data" in words else data
    sets = {key: value for key, value in SMALL.items() if key not in given}
    sets["pretrained_model_name_or_path"] = str(tiny_model(models, config["model_flavour"]))
    for dataset in parse(Path(data).read_text(encoding="utf-8")):
        if "conditioning_data" in dataset:
            sets[f"data.{dataset['id']}.resolution"] = "64"
    return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


def tiny_model(models: Path, flavour: str) -> Path:
    """A tiny checkpoint of `flavour`, made once."""
    return make_tiny(models / flavour, flavour, vae_area=AREA, vl_area=56 * 56)


def loaded(text: str) -> Any:
    """JSON with comments."""
    return parse(text)


def settings_and_data(block: Block, folder: Path) -> tuple[Path, Path]:
    """The two files that a JSON block makes, with what it leaves out filled in."""
    value = loaded(block.text)
    config: dict[str, Any] = {"model_flavour": "edit-v2", "max_train_steps": 10}
    data: list[dict[str, Any]] = [
        {"id": "edited", "instance_data_dir": "edited", "conditioning_data": ["original"]},
        {"id": "original", "dataset_type": "conditioning", "instance_data_dir": "original"},
    ]
    if isinstance(value, list):
        data = value
    elif "instance_data_dir" in value or "dataset_type" in value:
        by_id = {one["id"]: one for one in data}
        by_id[value["id"]] = by_id.get(value["id"], {}) | value
        data = list(by_id.values())
    else:
        config |= value
    files = folder / "config.json", folder / "data.json"
    for path, content in zip(files, (config, data), strict=True):
        path.write_text(json.dumps(content))
    return files
