"""A caching stage that has nothing to do reads each note, part table and manifest once."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from small_run import make_run, said, with_files

opened: Counter[str] | None = None


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and opened is not None and isinstance(arguments[0], str | os.PathLike):
        opened[os.path.relpath(arguments[0])] += 1


@pytest.fixture(scope="module", autouse=True)
def hooked() -> None:
    """Hooks cannot be taken out again: this one counts while `opened` is there."""
    sys.addaudithook(_count)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    monkeypatch.chdir(make_run(tmp_path))
    for command in ("pair", "cache-vae", "cache-embeds"):
        with_files(command)
    global opened
    opened = Counter[str]()
    yield opened
    opened = None


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_nothing_to_do_reads_every_file_of_the_stores_once(
    counted: Counter[str], stage: str
) -> None:
    assert said(with_files(stage, "--json"))["computed"] == 0
    in_stores = {
        path: count
        for path, count in counted.items()
        if path.startswith("caches/") and ("/parts/" in path or "/runs/" in path)
    }
    assert {Path(path).name for path in in_stores} >= {"manifest.json", "rows.parquet"}
    assert any("/runs/" in path for path in in_stores)
    assert set(in_stores.values()) == {1}


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_float32_is_exact_while_a_stage_encodes(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qedit.stages.models.device import is_float32_exact

    monkeypatch.chdir(make_run(tmp_path))
    with_files("pair")
    encoding = import_module(f"qedit.stages.{stage.replace('-', '_')}.encoding")
    encode, exact = encoding.OnDevice.encode, []

    def spied(self: Any, *arguments: Any) -> Any:
        exact.append(is_float32_exact())
        return encode(self, *arguments)

    monkeypatch.setattr(encoding.OnDevice, "encode", spied)
    with_files(stage)
    assert exact
    assert all(exact)
    assert not is_float32_exact()
