"""The spool gives back the pictures that it was given, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from samples import made_picture

from qedit.stages.encoding.spool import Spool, spool_key


@pytest.mark.parametrize("size", [(1024, 1024), (1376, 768), (320, 448)])
def test_a_spool_gives_back_pictures_of_full_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """A 1 MP reference is shown whole to edit-v1's language model."""
    shown = Image.effect_noise(size, 64).convert("RGB")
    picture = made_picture("a.png", dataset="a", size=(64, 64), vl_size=size)
    spool = Spool(tmp_path / "spool", ["a"])
    row = spool.row_of(shown)
    assert row is not None
    store = spool.store_set.of("a")
    with store.adding():
        store.add([spool_key(picture)], [row])
    taken = Spool(tmp_path / "spool", ["a"]).take(picture)
    assert taken is not None
    assert taken.tobytes() == shown.tobytes()


def test_a_picture_that_went_from_a_spool_is_decoded_again(tmp_path: Path) -> None:
    picture = made_picture("a.png", dataset="a", size=(64, 64), vl_size=(64, 64))
    spool = Spool(tmp_path / "spool", ["a"])
    row = spool.row_of(Image.new("RGB", (64, 64)))
    assert row is not None
    store = spool.store_set.of("a")
    with store.adding():
        store.add([spool_key(picture)], [row])
    taker = Spool(tmp_path / "spool", ["a"])
    assert spool_key(picture) in taker.store_set
    for part in store.part_paths():
        shutil.rmtree(part)
    assert taker.take(picture) is None


def test_a_spool_takes_no_picture_that_no_part_holds_and_no_room_that_is_wanted(
    tmp_path: Path,
) -> None:
    assert Spool(tmp_path, ["a"]).row_of(Image.new("RGB", (4096, 4096 + 32))) is None
    assert Spool(tmp_path, ["a"]).row_of(Image.new("RGB", (1000, 1000))) is None
    free = shutil.disk_usage(tmp_path).free
    assert Spool(tmp_path, ["a"], spared_bytes=2 * free).row_of(Image.new("RGB", (64, 64))) is None
