"""Only regular files of a bounded size are read, and JSON of a bounded depth."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qedit.cache.errors import Broken
from qedit.cache.files.json_file import LARGEST_BYTES, read_object
from qedit.cache.regular_file import DEEPEST, content_of, json_in


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize("make", [_pipe, _folder, _device, _socket])
@pytest.mark.parametrize("read", [content_of, read_object])
def test_what_is_no_regular_file_is_never_opened(
    tmp_path: Path, make: object, read: object
) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    with pytest.raises(Broken, match="folder" if make is _folder else "not a regular file"):
        read(path)  # type: ignore[operator]


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "x")


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"123")
    assert content_of(path, 3) == b"123"
    with pytest.raises(Broken, match="it has 3 bytes, and at most 2 are read"):
        content_of(path, 2)
    os.truncate(path, LARGEST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(Broken, match="at most"):
        read_object(path)


@pytest.mark.parametrize(("left", "right"), ["[]", ('{"a":', "}"), ('[{"a":', "}]")])
def test_json_is_read_to_a_depth_that_can_be_written_again(left: str, right: str) -> None:
    levels = left.count("[") + left.count("{")
    most = DEEPEST // levels
    assert json_in(left * (most - 1) + "1" + right * (most - 1))
    for times in (most + 1, 100_000):
        with pytest.raises(Broken, match="nested too deeply"):
            json_in(left * times + "1" + right * times)


def test_json_is_what_it_says() -> None:
    assert json_in(b'{"a": [1, "[[[", null], "b": 2.5}') == {"a": [1, "[[[", None], "b": 2.5}
    assert json_in("5") == 5
