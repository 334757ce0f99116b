"""Pages in memory are copied from there; all others are read through the system."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from qedit.cache.errors import Broken
from qedit.cache.format import mapped_file, open_files
from qedit.cache.format.mapped_file import (
    LARGEST_BYTES,
    PAGE_BYTES,
    SMALLEST_BYTES,
    tells_the_truth,
)
from qedit.cache.format.open_files import OpenFile, OpenFiles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is in memory")

LENGTH = 40 * PAGE_BYTES + 100
MUCH = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of chance bytes that lies in memory and on the disk."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(LENGTH))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of all reads that went through the system."""
    asked: list[int] = []
    really = os.preadv

    def preadv(number: int, spaces: tuple[memoryview], offset: int) -> int:
        asked.append(offset)
        return really(number, spaces, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return asked


def _read(file: OpenFile, offset: int, length: int) -> bytes:
    space = np.zeros(length, np.uint8)
    file.fill(space, offset)
    return space.tobytes()


def _in_memory(path: Path) -> bool:
    """Whether every page is, asked in a way of our own."""
    with path.open("rb") as file:
        mapped = mapped_file.mapped_file(file.fileno())
        assert mapped is not None
        return mapped.copy(np.empty(LENGTH, np.uint8), 0)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, LENGTH),
        (0, SMALLEST_BYTES),
        (PAGE_BYTES, 20 * PAGE_BYTES),
        (PAGE_BYTES - 1, 20 * PAGE_BYTES + 2),
        (64, 20 * PAGE_BYTES - 64),
        (LENGTH - SMALLEST_BYTES, SMALLEST_BYTES),
    ],
)
def test_what_lies_in_memory_is_copied_without_a_call(
    path: Path, calls: list[int], offset: int, length: int
) -> None:
    file = OpenFiles(most_mapped_bytes=MUCH).get(str(path))
    assert _read(file, offset, length) == path.read_bytes()[offset : offset + length]
    assert calls == []


def test_small_and_huge_pieces_go_through_the_system(
    tmp_path: Path, path: Path, calls: list[int]
) -> None:
    file = OpenFiles(most_mapped_bytes=MUCH).get(str(path))
    assert _read(file, 5, SMALLEST_BYTES - 1) == path.read_bytes()[5 : 5 + SMALLEST_BYTES - 1]
    huge = tmp_path / "huge"
    huge.write_bytes(bytes([7]) * (LARGEST_BYTES + 1))
    file = OpenFiles(most_mapped_bytes=MUCH).get(str(huge))
    assert _read(file, 0, LARGEST_BYTES + 1) == huge.read_bytes()
    assert calls == [5, 0]


def test_what_has_left_memory_comes_through_the_system(path: Path, calls: list[int]) -> None:
    file = OpenFiles(most_mapped_bytes=MUCH).get(str(path))
    expected = path.read_bytes()
    with path.open("rb") as other:
        os.posix_fadvise(other.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _in_memory(path):
        pytest.skip("this file system keeps its files in memory")
    assert _read(file, 0, LENGTH) == expected
    assert calls == [0]
    assert _read(file, 0, LENGTH) == expected  # the system has brought it back
    assert calls == [0]


def test_reads_beyond_the_end_are_refused(path: Path) -> None:
    file = OpenFiles(most_mapped_bytes=MUCH).get(str(path))
    for offset in (LENGTH - SMALLEST_BYTES + 1, LENGTH, 10 * LENGTH):
        with pytest.raises(Broken, match="too short"):
            _read(file, offset, SMALLEST_BYTES)


CUT = """
import ctypes, os, sys
import numpy as np
from qedit.cache.format import mapped_file
from qedit.cache.errors import Broken
from qedit.cache.format.open_files import OpenFiles
path, left = sys.argv[1], int(sys.argv[2])
def all_there(address, length, pages):
    ctypes.memset(pages, 1, -(-length // mapped_file.PAGE_BYTES))
    return 0
if sys.argv[3] == "in memory":
    mapped_file._mincore = lambda: all_there
file = OpenFiles(most_mapped_bytes=1 << 30).get(path)
space = np.empty(os.path.getsize(path), np.uint8)
file.fill(space, 0)
os.truncate(path, left)
try:
    file.fill(space, 0)
except Broken as error:
    print(error)
"""


@pytest.mark.parametrize("behind", ["gone", "in memory"])
@pytest.mark.parametrize("left", [0, 3 * PAGE_BYTES, 39 * PAGE_BYTES, 39 * PAGE_BYTES + 1])
def test_a_file_cut_off_while_mapped_is_an_error_and_no_signal(
    path: Path, left: int, behind: str
) -> None:
    """What lay behind the cut may stay in memory: in a large piece that is being written."""
    words = [sys.executable, "-c", CUT, str(path), str(left), behind]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the shard's file is too short\n"), done.stderr


def test_only_as_much_is_mapped_as_may_be(tmp_path: Path, calls: list[int]) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(bytes(LENGTH))
    files = OpenFiles(2, most_mapped_bytes=2 * LENGTH - 1)
    for path in paths[:2]:
        _read(files.get(str(path)), 0, LENGTH)
    assert len(calls) == 1  # there was room for the first alone
    first = files.get(str(paths[2]))  # the first is given up, but was there when this one came
    _read(first, 0, LENGTH)
    assert len(calls) == 2
    _read(files.get(str(paths[0])), 0, LENGTH)  # now there is room again
    assert len(calls) == 2
    plain = OpenFiles().get(str(paths[0]))
    _read(plain, 0, LENGTH)
    assert len(calls) == 3


def test_a_file_given_up_is_read_to_the_end_and_then_unmapped(path: Path, tmp_path: Path) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    files, other = OpenFiles(1, most_mapped_bytes=MUCH), tmp_path / "other"
    other.write_bytes(b"1")
    held = files.get(str(path))
    assert maps() == 1
    files.get(str(other))
    assert _read(held, 0, LENGTH) == path.read_bytes()
    del held
    gc.collect()
    assert maps() == 0


def test_threads_that_open_a_file_at_once_share_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, both, got = [], threading.Barrier(2), []
    really = open_files.OpenFile

    def opened(name: str) -> OpenFile:
        both.wait(10)
        return really(name)

    monkeypatch.setattr(open_files, "OpenFile", opened)
    files = OpenFiles(most_mapped_bytes=LENGTH)
    for _ in range(2):
        threads.append(threading.Thread(target=lambda: got.append(files.get(str(path)))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert got[0] is got[1]
    assert files._left_bytes == 0


def test_a_file_of_somebody_else_is_not_mapped(
    path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    _read(OpenFiles(most_mapped_bytes=MUCH).get(str(path)), 0, LENGTH)
    assert calls == [0]


def test_an_answer_that_never_says_no_is_not_believed() -> None:
    def always(value: int) -> mapped_file.Mincore:
        def answer(address: int, length: int, pages: int) -> int:
            ctypes.memset(pages, value, 1)
            return 0

        return answer

    truly = mapped_file._mincore()
    assert truly is not None
    assert tells_the_truth(truly)
    assert not tells_the_truth(always(0))
    assert not tells_the_truth(always(1))
    assert not tells_the_truth(lambda *asked: -1)


def test_every_thread_has_answers_of_its_own(path: Path) -> None:
    here: list[int] = []
    thread = threading.Thread(target=lambda: here.append(mapped_file._ANSWERS.address))
    thread.start()
    thread.join()
    assert here != [mapped_file._ANSWERS.address]
