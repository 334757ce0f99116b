"""What decides nothing never stops a command; what decides is covered by `verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finished_run import finished_run
from small_run import enter_copy, with_files

from qedit.stages.train.evaluation.preview_process import Decoding

# what a finished run's folder holds besides what decides, and what becomes of it when damaged
WRITTEN_ANEW = (
    "README.md",
    "index.html",
    "as-run/config.json",
    "as-run/multidatabackend.json",
    "best/state.json",
    "previews/step-000000/*.png",
    "previews/step-000000/*.webp",
    "previews/step-000000/alignment.json",
    "previews/step-000002/*.png",
    "previews/step-000002/*.webp",
    "previews/step-000002/alignment.json",
    "previews/strips/*.png",
)
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bad byte": lambda path: path.write_bytes(_with_a_bad_byte(path.read_bytes())),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "another type": lambda path: path.write_bytes(b'{"a": 1, "b": [{}]}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
ALWAYS = ("a bad byte", "a folder")


def _with_a_bad_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff" + data[middle + 1 :]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, as the working directory."""
    monkeypatch.setattr(Decoding, "start", lambda self, **_: None)
    return enter_copy(finished, tmp_path / "run", monkeypatch)


@pytest.mark.parametrize(
    "damage",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.full) for name in DAMAGES],
)
def test_what_decides_nothing_is_written_anew_or_left_out(run: Path, damage: str) -> None:
    with_files("train")
    with_files("preview")
    out = run / "out"
    paths = [path for pattern in WRITTEN_ANEW for path in sorted(out.glob(pattern))]
    before = {path: path.read_bytes() for path in paths}
    assert len(before) >= len(WRITTEN_ANEW)
    for path in paths:
        DAMAGES[damage](path)
    for command in ("status", "plan", "train", "preview", "train"):
        with_files(command)
    assert {path for path in paths if path.read_bytes() != before[path]} == set()
