"""A lock has one holder; locks of dead processes do not count, and one process takes over."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from crashing import changes_of, deaths_in, kill, take_lock

from qedit.cache.errors import Locked
from qedit.cache.files.atomic import LEFTOVER
from qedit.cache.files.lock import LOCK_FILE, Holder, holder_of, writer_lock
from qedit.cache.files.owner import Owner, this_process


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def _owner(child: subprocess.Popen[bytes]) -> Owner:
    text = Path(f"/proc/{child.pid}/stat").read_text()
    return replace(this_process(), pid=child.pid, started=text.split(")")[-1].split()[19])


def _leave_lock(folder: Path, owner: Owner, turn: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    holder = Holder(owner, turn, "caching latents", "2026-01-01 12:00:00+00:00")
    (folder / LOCK_FILE).write_bytes(holder.as_bytes())


def _dead() -> Owner:
    return replace(this_process(), started="1")


def test_a_lock_says_who_has_it_and_goes_with_the_block(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with writer_lock(tmp_path, doing="caching latents"):
        holder = holder_of(tmp_path)
        assert holder is not None
        assert (holder.owner, holder.doing) == (this_process(), "caching latents")
        said = json.loads((tmp_path / LOCK_FILE).read_text())
        assert said["owner"]["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_second_one_is_told_about_the_first(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    owner = _owner(child)
    _leave_lock(tmp_path, owner)
    with pytest.raises(Locked) as told, writer_lock(tmp_path, doing="x"):
        raise AssertionError("the block must not run")
    for fact in (str(tmp_path), str(child.pid), owner.host, "caching latents", "2026-01-01 12:00"):
        assert fact in told.value.what
    assert "`qedit unlock`" in told.value.do
    assert LOCK_FILE not in told.value.do
    assert told.value.exit_code == 6
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_the_same_process_may_not_write_twice_either(tmp_path: Path) -> None:
    with writer_lock(tmp_path, doing="one"), pytest.raises(Locked, match="one"):
        writer_lock(tmp_path, doing="two").__enter__()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_releases_the_lock(tmp_path: Path, error: type[BaseException]) -> None:
    with contextlib.suppress(error), writer_lock(tmp_path, doing="x"):
        raise error
    assert holder_of(tmp_path) is None


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    _leave_lock(tmp_path, _owner(child))
    child.kill()
    child.wait()
    with writer_lock(tmp_path, doing="x"):
        holder = holder_of(tmp_path)
        assert holder is not None
        assert holder.owner == this_process()
    assert list(tmp_path.iterdir()) == []


def test_what_was_begun_by_a_process_that_died_goes_with_the_next_lock(tmp_path: Path) -> None:
    begun = tmp_path / f".{LOCK_FILE}~{_dead()}~3{LEFTOVER}"
    living = tmp_path / f".{LOCK_FILE}~{this_process()}~3{LEFTOVER}"
    for path in (begun, living):
        path.touch()
    with writer_lock(tmp_path, doing="x"):
        assert not begun.exists()
    assert list(tmp_path.iterdir()) == [living]


def test_another_hosts_lock_is_never_taken(tmp_path: Path) -> None:
    _leave_lock(tmp_path, replace(_dead(), host="elsewhere"))
    with pytest.raises(Locked, match="elsewhere"):
        writer_lock(tmp_path, doing="x").__enter__()


def test_a_lock_that_cannot_be_read_is_respected(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"owner": {}}', '{"pid": 1}'):
        (tmp_path / LOCK_FILE).write_text(text)
        with pytest.raises(Locked) as told:
            writer_lock(tmp_path, doing="x").__enter__()
        assert f"delete {tmp_path / LOCK_FILE}" in told.value.do


def test_a_lock_that_was_lost_is_not_released_for_its_new_owner(tmp_path: Path) -> None:
    with writer_lock(tmp_path, doing="x"):
        (tmp_path / LOCK_FILE).unlink()
        _leave_lock(tmp_path, replace(this_process(), host="elsewhere"))
    holder = holder_of(tmp_path)
    assert holder is not None
    assert holder.owner.host == "elsewhere"


def _race(folder: Path, rounds: int, first: bool, barrier: Barrier) -> None:
    """In every round all take the lock of somebody dead at once; who gets it says so."""
    for number in range(rounds):
        if first:
            _leave_lock(folder / str(number), _dead(), turn=number)
        barrier.wait()
        with contextlib.suppress(Locked), writer_lock(folder / str(number), doing="racing"):
            (folder / f"{number}-{os.getpid()}").touch()
            barrier.wait()
            continue
        barrier.wait()


def test_of_many_heirs_exactly_one_inherits(tmp_path: Path) -> None:
    rounds, racers = 60, 4
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(racers, timeout=60)
    children = [
        context.Process(target=_race, args=(tmp_path, rounds, number == 0, barrier))
        for number in range(racers)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * racers
    winners = [path.name.split("-")[0] for path in tmp_path.glob("*-*")]
    assert sorted(winners, key=int) == [str(number) for number in range(rounds)]


def test_an_heir_that_dies_itself_is_inherited_too(tmp_path: Path) -> None:
    _leave_lock(tmp_path / "whole", _dead())
    deaths = deaths_in(changes_of(take_lock, tmp_path / "whole"))
    for death in [death for death in deaths if death.way != "half"][::2]:
        folder = tmp_path / f"{death.at}-{death.way}"
        _leave_lock(folder, _dead())
        kill(take_lock, folder, death=death)
        with writer_lock(folder, doing="x"):
            holder = holder_of(folder)
            assert holder is not None
            assert holder.owner == this_process()
        left = {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}
        assert left == set()
