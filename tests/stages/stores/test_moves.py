"""A run is known by its id where its folder was moved; a copy of the folder has none of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qedit.stages.stores.moves import RUN_ID_FILE, Move, keep_id, known_id, written_id


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    keep_id(tmp_path / "out", "0123456789abcdef")
    return tmp_path / "out"


def test_a_moved_folder_is_known(out: Path) -> None:
    assert known_id(out) == "0123456789abcdef"
    new = out.rename(out.with_name("new"))
    assert known_id(new) == "0123456789abcdef"
    assert written_id(new) == ("0123456789abcdef", out)
    out.mkdir()
    keep_id(out, "another")
    assert known_id(new) == "0123456789abcdef"  # another run has begun where it was


def test_a_copy_has_no_id_of_its_own_until_it_is_given_one(out: Path) -> None:
    new = Path(shutil.copytree(out, out.with_name("new")))
    assert known_id(new) == ""
    assert known_id(out) == "0123456789abcdef"
    keep_id(new, "another")
    assert (known_id(new), known_id(out)) == ("another", "0123456789abcdef")


def test_another_path_to_the_same_folder_is_no_copy(out: Path) -> None:
    link = out.with_name("link")
    link.symlink_to(out)
    assert known_id(link) == "0123456789abcdef"


def test_every_changed_byte_is_found(out: Path) -> None:
    data = (out / RUN_ID_FILE).read_bytes()
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        (out / RUN_ID_FILE).write_bytes(spoilt)
        assert known_id(out) in ("", "0123456789abcdef")


def test_what_stands_in_its_place_is_set_aside(out: Path) -> None:
    (out / RUN_ID_FILE).unlink()
    (out / RUN_ID_FILE / "inside").mkdir(parents=True)
    assert known_id(out) == ""
    keep_id(out, "another")
    assert known_id(out) == "another"
    assert (out / f"{RUN_ID_FILE}.damaged" / "inside").is_dir()


def test_where_there_is_no_folder_nothing_is_written(tmp_path: Path) -> None:
    keep_id(tmp_path / "out", "0123456789abcdef")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("former", "now", "old", "new"),
    [
        ("/a/project/caches/vae", "/b/project/caches/vae", "/a", "/b"),
        ("/a/project/caches/vae", "/a/other/caches/vae", "/a/project", "/a/other"),
        ("/a/caches/vae", "/a/vae-2", "/a/caches/vae", "/a/vae-2"),
        (None, "/a/vae", "/a/vae", "/a/vae"),
    ],
)
def test_a_move_is_that_of_the_highest_folder(
    former: str | None, now: str, old: str, new: str
) -> None:
    move = Move.between(former, Path(now))
    if former == now or former is None:
        assert move.path("/a/vae/x") == "/a/vae/x"
        return
    assert (move.old, move.new) == (Path(old), Path(new))
    assert move.path(f"{old}/out") == f"{new}/out"
    assert move.path("/elsewhere/out") == "/elsewhere/out"
