"""A quantised base is checked before it is trained on, and made anew where it is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import flip
from small_run import cache_rows, enter_copy, loaded, make_run, with_files

from qedit.stages.frozen_base.quantized import CHECKSUMS_FILE, QUANTIZED_FILE, bases_in


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose base lies in 8 bits in its cache, and its clean losses."""
    folder = make_run(
        tmp_path_factory.mktemp("base") / "run",
        base_model_precision="int8-quanto",
        max_train_steps=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cache_rows()
        with_files("cache-base")
        with_files("train", "--set", "output_dir=clean")
    return folder


@pytest.fixture
def copy(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_copy(cached, tmp_path / "copy", monkeypatch)


def file_of(name: str = "base-00000.safetensors") -> Path:
    (base,) = bases_in(Path("caches/base"))
    return base.folder / name


def losses(output: str = "out") -> list[float]:
    lines = Path(output, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def garbage(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(b"\xa5" * size)


def garbage_inside(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-5000] + b"\xa5" * 5000)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of a tensor": lambda path: flip(path, -1),
    "garbage in tensors": garbage_inside,
    "a name in the header": lambda path: flip(path, 12),
    "garbage": garbage,
    "cut": cut,
    "missing": Path.unlink,
}


@pytest.mark.parametrize(
    ("damage", "options"),
    [
        *((damage, ()) for damage in DAMAGES),
        ("a bit of a tensor", ("--set", "blocks_to_stream=1")),
    ],
)
def test_a_damaged_base_is_refused_and_what_the_message_says_leads_to_the_clean_run(
    copy: Path, damage: str, options: tuple[str, ...]
) -> None:
    DAMAGES[damage](file_of())
    said = with_files("train", *options, expect=5).stderr
    assert "base-00000.safetensors" in said
    assert "Run `qedit cache-base --config config.json" in said
    assert not list(Path("out").glob("checkpoint-*"))
    assert "is made anew" in with_files("cache-base").stderr
    with_files("train", *options)
    assert losses() == losses("clean")


@pytest.mark.parametrize("damage", ["garbage", "cut", "missing"])
def test_a_run_makes_a_base_that_is_not_whole_anew_at_once(copy: Path, damage: str) -> None:
    DAMAGES[damage](file_of())
    assert "is made anew" in with_files("run").stderr
    assert losses() == losses("clean")


def test_a_base_of_an_earlier_version_is_checked_once_and_its_checksums_are_recorded(
    copy: Path,
) -> None:
    record = file_of(CHECKSUMS_FILE)
    before = record.read_bytes()
    record.unlink()
    with_files("train")
    assert losses() == losses("clean")
    assert record.read_bytes() == before


@pytest.mark.parametrize("is_there", [False, True])
def test_checksums_that_are_lost_are_not_taken_from_a_damaged_base(
    copy: Path, is_there: bool
) -> None:
    flip(file_of(), -1)
    record = file_of(CHECKSUMS_FILE)
    if is_there:
        flip(record, 40)
    else:
        record.unlink()
    assert "Run `qedit cache-base" in with_files("train", expect=5).stderr


@pytest.mark.parametrize("gone", [False, True])
def test_a_base_without_its_index_is_made_anew(copy: Path, gone: bool) -> None:
    index = file_of(QUANTIZED_FILE)
    before = index.read_bytes()
    if gone:
        index.unlink()
    else:
        flip(index, 30)
    with_files("cache-base")
    assert index.read_bytes() == before
    assert "kept" in with_files("cache-base").stdout
    with_files("status")


def test_verify_says_which_runs_use_a_damaged_base_and_drops_it(copy: Path) -> None:
    with_files("train")
    flip(file_of(), -1)
    out = loaded().settings.output_dir.resolve()
    said = with_files("verify", expect=5).stderr
    assert "base-00000.safetensors is not as it was written" in said
    assert f"Runs that use the damaged base: {out}" in said
    told = with_files("verify", "--drop").stdout
    assert f"Runs that use the damaged base: {out}" in told
    assert "No run was trained on it" not in told
    assert not list(bases_in(Path("caches/base")))
    with_files("run")
    with_files("verify")
