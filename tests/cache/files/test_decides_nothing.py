"""Files that decide nothing: a damaged one counts as missing, and a line says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qedit.cache.files import decides_nothing
from qedit.cache.files.decides_nothing import put_page, put_text, read_or_empty, set_aside

DAMAGES: dict[str, Callable[[Path], object]] = {
    "invalid UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "zeros": lambda path: path.write_bytes(bytes(300)),
    "cut": lambda path: path.write_bytes(b'{"a": '),
    "empty": lambda path: path.write_bytes(b""),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "another type": lambda path: path.write_bytes(b"[1]"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_is_said_and_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "file.json"
    DAMAGES[damage](path)
    assert read_or_empty(path) == {}
    assert f"{path} cannot be read (" in caplog.text
    assert put_text(path, '{"a": 1}')
    assert json.loads(path.read_bytes()) == {"a": 1}


def test_one_that_is_missing_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_or_empty(tmp_path / "none" / "file.json") == {}
    (tmp_path / "file").write_text("a file")
    assert read_or_empty(tmp_path / "file" / "file.json") == {}
    assert not caplog.text


def test_one_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file.json"
    path.write_text('{"a": 1}')
    monkeypatch.setattr(decides_nothing, "MOST_BYTES", 7)
    assert read_or_empty(path) == {}
    assert "at most 7 are read" in caplog.text


def test_what_holds_the_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert put_text(path, "text")
    assert not put_text(path, "text")
    assert put_text(path, "another")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_our_page_in_another_encoding_is_ours(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "README.md"
    path.write_bytes("[ours] before: Mädchen".encode(encoding))
    assert put_page(path, "[ours] now", mark="[ours]")
    assert path.read_text() == "[ours] now"


@pytest.mark.parametrize("content", [b"", bytes(100), b" \n"])
def test_a_page_that_says_nothing_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(content)
    assert put_page(path, "[ours] now", mark="[ours]")


def test_a_page_of_somebody_else_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "README.md"
    path.write_bytes("Mädchen".encode("latin-1"))
    assert not put_page(path, "[ours] now", mark="[ours]")
    assert path.read_bytes() == "Mädchen".encode("latin-1")
    assert f"{path} was not written by qedit" in caplog.text


def test_what_is_set_aside_takes_no_other_name_away(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second", "third"):
        path.write_text(content)
        set_aside(path)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "file.damaged": "first",
        "file.damaged1": "second",
        "file.damaged2": "third",
    }
