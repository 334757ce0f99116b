"""Files that are no configuration are refused: irregular or huge ones, and odd values in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configurations import complaint, configured, image, only_line, reference

from qedit.cache.errors import WrongUse
from qedit.config.loading import load
from qedit.config.reading import LARGEST_BYTES


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path)


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, LARGEST_BYTES + 1)


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "not a regular file"),
        (_device, "not a regular file"),
        (_circle, "Too many levels of symbolic links"),
        (_huge, "it has 10000001 bytes"),
        (_folder, "is a folder; name the file in it"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_configuration_is_a_regular_file_of_ten_megabytes_at_most(
    tmp_path: Path, make: Callable[[Path], None], why: str, name: str
) -> None:
    configured(tmp_path, {})
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(WrongUse, match=rf"{name}: .*{why}"):
        load(tmp_path / "config.json", tmp_path / "data.json")


@pytest.mark.parametrize("times", [200, 100_000])
def test_nesting_has_an_end(tmp_path: Path, times: int) -> None:
    configured(tmp_path, {})
    (tmp_path / "config.json").write_text('{"seed": ' + "[" * times + "]" * times + "}")
    with pytest.raises(WrongUse, match="nested too deeply"):
        load(tmp_path / "config.json", tmp_path / "data.json")


def test_a_number_has_an_end(tmp_path: Path) -> None:
    configured(tmp_path, {})
    (tmp_path / "config.json").write_text('{"seed": ' + "7" * 5000 + "}")
    with pytest.raises(WrongUse, match=r"the number 7777777777\.\.\. has 5000 digits"):
        load(tmp_path / "config.json", tmp_path / "data.json")
    for key in ("seed", "max_train_steps", "learning_rate", "huber_c"):
        line = only_line(complaint(tmp_path, {key: 10**200}))
        assert line == f"config.json: `{key}` is too large a number"
        line = only_line(complaint(tmp_path, {}, sets=(f"{key}={'7' * 5000}",)))
        assert line.endswith(f"7: `{key}` is too large a number")
        assert len(line) < 300


def test_many_unknown_keys_are_told_in_few_lines(tmp_path: Path) -> None:
    began = time.process_time()
    what = complaint(tmp_path, {f"lora_rang{number}": 0 for number in range(20_000)})
    # a guess at what each key may mean would take minutes
    assert time.process_time() - began < 30
    assert "`lora_rang0` is not a known key; did you mean `lora_rank`?" in what
    assert "config.json: 19970 more mistakes of this kind follow" in what
    assert what.count("\n") < 40
    assert len(complaint(tmp_path, {"x" * 9_000_000: 1})) < 300


TOO_ODD = "holds a zero byte, or half of a character"


@pytest.mark.parametrize("text", ["a\0b", "a\ud800", "\udfffb"])
def test_a_text_that_cannot_be_written_is_refused(tmp_path: Path, text: str) -> None:
    for key in ("cache_dir", "output_dir", "validation_negative_prompt", "init_lora"):
        assert f"config.json: `{key}` {TOO_ODD}" in complaint(tmp_path, {key: text})
    fields: dict[str, Any] = {
        "id": text,
        "instance_data_dir": text,
        "cache_dir_vae": text,
        "instance_prompt": ["red", text],
        "csv": {"path": text},
    }
    for key, value in fields.items():
        what = complaint(tmp_path, {}, image(**{key: value}), reference())
        assert f"`{key}` {TOO_ODD}" in what
    assert TOO_ODD in complaint(tmp_path, {}, sets=(f"cache_dir={json.dumps(text)}",))


def test_an_id_is_short_enough_to_name_folders(tmp_path: Path) -> None:
    configured(tmp_path, {}, image(id="é" * 100), reference())
    what = complaint(tmp_path, {}, image(id="é" * 101), reference())
    assert "`id` must not be longer than 200 bytes" in what


def test_a_home_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    line = only_line(complaint(tmp_path, {"cache_dir": "~no-such-user/caches"}))
    assert line.endswith(
        "`cache_dir` names a home folder that does not exist: ~no-such-user/caches"
    )
