"""run.json has one reader; a damaged one is written anew from the newest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quiet import Quiet
from training import train

from qedit.cache.errors import AnotherRecipe, Damaged
from qedit.stages.run_output.run_file import damage_of_run, read_run, write_run
from qedit.stages.train import loop

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data.replace(b'"seed": 42', b'"seed": 43'),
    "the name of its checksum": lambda data: data.replace(b"crc32c", b"crc32b"),
    "invalid UTF-8": lambda data: data[:20] + b"\xff" + data[21:],
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[:50],
    "empty": lambda data: b"",
    "nested": lambda data: b"[" * 100_000,
    "another type": lambda data: b'{"settings": 3, "datasets": {"cats": []}}',
}


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    write_run(tmp_path, {"settings": {"seed": 1}})
    assert read_run(tmp_path) == {"settings": {"seed": 1}}


def test_one_of_an_earlier_version_has_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"settings": {"seed": 1}}')
    assert read_run(tmp_path) == {"settings": {"seed": 1}}
    assert damage_of_run(tmp_path) is None


@pytest.mark.parametrize("text", ['{"settings"', "[1]", "\x00\x00"])
def test_a_damaged_one_without_a_checkpoint_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Damaged, match=r"run\.json cannot be read: .*\nDelete that file"):
        read_run(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_written_anew_from_the_newest_checkpoint(made: Any, damage: str) -> None:
    configuration = made(max_train_steps=1)
    train(configuration)
    path = configuration.settings.output_dir / "run.json"
    before = path.read_bytes()
    path.write_bytes(DAMAGES[damage](before))
    assert path.read_bytes() != before
    run = read_run(path.parent)
    assert run is not None
    assert run["settings"]["seed"] == 42
    with pytest.raises(AnotherRecipe, match="lora_rank"):
        train(made(max_train_steps=2, lora_rank=7))
    said = Quiet()
    assert loop.run(made(max_train_steps=1), said, device="cpu").kept == 1
    (line,) = [line for line in said.warned if "run.json" in line]
    assert line.startswith(f"{path} cannot be read: ")
    assert line.endswith("It is written anew: checkpoint-1 says the same.")
    assert path.read_bytes() == before


def test_one_that_is_gone_is_what_the_checkpoint_says(made: Any) -> None:
    configuration = made(max_train_steps=1)
    train(configuration)
    path = configuration.settings.output_dir / "run.json"
    before = read_run(path.parent)
    path.unlink()
    assert read_run(path.parent) == before


def test_before_the_first_checkpoint_a_damaged_one_costs_nothing(made: Any) -> None:
    configuration = made(max_train_steps=1)
    output = configuration.settings.output_dir
    output.mkdir()
    (output / "run.json").write_bytes(b"\x00" * 100)
    said = Quiet()
    assert loop.run(configuration, said, device="cpu").computed == 1
    (line,) = [line for line in said.warned if "run.json" in line]
    assert line.endswith("It is written anew: there is no checkpoint yet.")
    assert json.loads((output / "run.json").read_bytes())["settings"]["seed"] == 42
