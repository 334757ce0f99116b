"""A file is there whole or not at all; leftovers are known by their owners."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from qedit.cache.errors import Damaged, QeditError
from qedit.cache.files import atomic
from qedit.cache.files.owner import Owner, is_dead, owner_in, this_process
from qedit.cache.format.tables import read_table, write_table


@pytest.fixture
def dead() -> Owner:
    """A process that has ended."""
    child = subprocess.Popen(["sleep", "60"])
    owner = replace(this_process(), pid=child.pid, started="0")
    child.kill()
    child.wait()
    return owner


@pytest.fixture
def alive() -> Iterator[int]:
    """The number of a process that runs."""
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_files_hold_what_was_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "deep" / "b", b"\0\1")
    atomic.write_text(tmp_path / "deep" / "t", "Zürich\n")
    atomic.write_json(tmp_path / "deep" / "j", {"b": "é", "a": [1]})
    assert (tmp_path / "deep" / "b").read_bytes() == b"\0\1"
    assert (tmp_path / "deep" / "t").read_bytes() == "Zürich\n".encode()
    text = (tmp_path / "deep" / "j").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": "é", "a": [1]}
    assert "é" in text  # readable,
    assert text.index('"b"') < text.index('"a"')  # and in the order it was given
    assert _names(tmp_path / "deep") == ["b", "j", "t"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")
    with atomic.new_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")
    with contextlib.suppress(RuntimeError), atomic.new_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with atomic.new_folder(path) as folder:
        (folder / "in").mkdir()
        (folder / "in" / "a").write_text("a")
        assert not path.exists()
    assert (path / "in" / "a").read_text() == "a"
    assert _names(tmp_path) == ["checkpoint"]


def test_a_new_folder_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    really = os.fsync

    def fsync(handle: int) -> None:
        really(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append(path.name if (tmp_path / "folder").exists() else f"early {path.name}")

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic.new_folder(tmp_path / "folder") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
    assert {"early a", "early sub"} <= set(synced)
    assert synced[-1] == tmp_path.name


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), atomic.new_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("a")
        raise KeyboardInterrupt
    assert _names(tmp_path) == []


def test_a_finished_folder_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(FileExistsError), atomic.new_folder(tmp_path / "f"):
        raise AssertionError("the block must not run")


def test_create_never_replaces(tmp_path: Path) -> None:
    assert atomic.create(tmp_path / "f", b"mine")
    assert not atomic.create(tmp_path / "f", b"yours")
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert _names(tmp_path) == ["f"]


def test_create_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert atomic.create(tmp_path / "f", b"mine")
    assert not atomic.create(tmp_path / "f", b"yours")
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert _names(tmp_path) == ["f"]


def test_remove_takes_files_trees_links_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "a").write_text("a")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
    for name in ("tree", "link", "not there"):
        atomic.remove(tmp_path / name)
    assert _names(tmp_path) == ["kept"]
    atomic.remove(tmp_path / "kept" / "a")
    assert _names(tmp_path / "kept") == []


def test_a_tree_that_has_lost_its_name_goes_under_any(tmp_path: Path) -> None:
    """A name of its own for each that removes it would be too long for a file system at last."""
    tree = tmp_path / f".{'a' * 230}{atomic.LEFTOVER}"
    (tree / "within").mkdir(parents=True)
    atomic.remove(tree)
    assert list(tmp_path.iterdir()) == []


def test_only_what_dead_processes_left_is_swept(tmp_path: Path, dead: Owner, alive: int) -> None:
    other_host = replace(dead, host="elsewhere")
    kept = [
        f".file~{this_process()}~0.partial",
        f".file~{other_host}~0.partial",
        f"file~{dead}~0",  # no leftover: it has its name
        ".file.partial",  # somebody else's
        ".~~.partial",
    ]
    swept = [f".file~{dead}~0.partial", f".a~b.c~{dead}~17.partial"]
    for name in kept + swept:
        (tmp_path / name).write_text("x")
    tree = tmp_path / f".tree~{dead}~1.partial"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "a").write_text("a")
    assert atomic.sweep(tmp_path) == len(swept) + 1
    assert _names(tmp_path) == sorted(kept)
    assert atomic.sweep(tmp_path) == 0
    assert atomic.sweep(tmp_path / "not there") == 0


def test_a_forked_child_is_somebody_else() -> None:
    reading, writing = os.pipe()
    me = str(this_process())
    child = os.fork()
    if child == 0:
        os.write(writing, str(this_process()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    assert told != me
    assert owner_in(told) is not None


def test_the_dead_are_told_from_the_living(dead: Owner, alive: int) -> None:
    me = this_process()
    assert owner_in(str(me)) == me
    assert not is_dead(me)
    assert is_dead(dead)
    assert is_dead(replace(me, started="1"))  # its number was given to another process
    assert is_dead(replace(me, boot="before"))  # the machine was started anew
    assert not is_dead(replace(me, host="elsewhere", pid=dead.pid))
    assert not is_dead(replace(dead, space="1"))  # another container's: cannot be seen


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["sleep", "60"])
    text = Path(f"/proc/{child.pid}/stat").read_text()
    owner = replace(this_process(), pid=child.pid, started=text.split(")")[-1].split()[19])
    assert not is_dead(owner)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(owner)
    child.wait()


def test_where_there_is_no_proc_ps_is_asked(
    tmp_path: Path, alive: int, dead: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qedit.cache.files import owner

    monkeypatch.setattr(owner, "PROC", tmp_path)
    monkeypatch.setattr(owner, "_this_process", owner._this_process.__wrapped__)
    me = owner.this_process()
    assert me.boot == me.space == "0"
    assert not owner.is_dead(me)
    assert owner.is_dead(replace(me, pid=dead.pid))
    assert owner.is_dead(replace(me, started="1"))
    assert owner_in(str(me)) == me


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "may not be written"),
        (errno.EACCES, "may not be written"),
        (errno.EISDIR, "is a folder, where a file is wanted"),
    ],
)
def test_what_a_user_can_mend_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def open_new(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(atomic, "_open_new", open_new)
    with pytest.raises(QeditError, match=words) as told:
        atomic.write_bytes(tmp_path / "file", b"x")
    assert str(tmp_path / "file") in told.value.what
    assert told.value.do


def test_where_there_can_be_no_folder_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "deeper")
    for path in (Path("/proc/x"), tmp_path / "file" / "a", tmp_path / "nowhere" / "a"):
        with pytest.raises(QeditError, match=r"The folder .* cannot be created \(.+\)") as told:
            atomic.write_bytes(path / "b", b"1")
        assert "another folder" in told.value.do


def test_a_failing_disk_is_said_in_words(tmp_path: Path) -> None:
    with (
        pytest.raises(QeditError, match=r"file cannot be written: the disk fails"),
        atomic.new_file(tmp_path / "file"),
    ):
        raise OSError(errno.EIO, "Input/output error")


def test_other_errors_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Too many links"), atomic.new_file(tmp_path / "file"):
        raise OSError(errno.EMLINK, "Too many links")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(QeditError, match=r"/file is a folder"):
        atomic.write_bytes(tmp_path / "file", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tables_come_back(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "size": [1, None]})
    write_table(tmp_path / "t.parquet", table)
    assert read_table(tmp_path / "t.parquet").equals(table)
    assert read_table(tmp_path / "t.parquet", ["size"]).column_names == ["size"]
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.parquet")


def test_a_damaged_table_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, pa.table({"key": [f"{number:032x}" for number in range(100)]}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match=r"t\.parquet"):
        read_table(path)
    middle = len(whole) // 3  # in the values
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(Damaged, match=r"t\.parquet"):
        read_table(path)
