"""Damage is found wherever it is, and no damaged row is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from damage import flip_bit
from store_rows import (
    LAYOUTS,
    RECIPE,
    assert_holds,
    assert_not_believed,
    filled,
    only_shard,
    part_with,
    parts_of,
    random_rows,
)

from qedit.cache.errors import Damaged
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store


@LAYOUTS
def test_any_flipped_bit_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = random_rows(layout, 4)
    store = filled(tmp_path, layout, rows)
    (part,) = parts_of(store)
    random = np.random.default_rng(0)
    for path in [path for path in part.rglob("*") if path.is_file()]:
        for bit in random.integers(0, path.stat().st_size * 8, 20).tolist():
            flip_bit(path, bit)
            assert_not_believed(tmp_path, layout, rows)
            flip_bit(path, bit)
    assert store.verify() == []


@LAYOUTS
def test_any_truncation_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = random_rows(layout, 4)
    (part,) = parts_of(filled(tmp_path, layout, rows))
    for path in [path for path in part.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 4, len(whole) - 2):
            path.write_bytes(whole[:size])
            assert_not_believed(tmp_path, layout, rows)
        path.write_bytes(whole)


@LAYOUTS
def test_any_missing_file_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = random_rows(layout, 4)
    (part,) = parts_of(filled(tmp_path, layout, rows))
    for path in [path for path in part.rglob("*") if path.is_file()]:
        if path.name != "manifest.json":
            moved = path.rename(tmp_path / "moved")
            assert_not_believed(tmp_path, layout, rows)
            moved.rename(path)


@LAYOUTS
def test_every_row_of_a_missing_or_torn_shard_is_damaged(tmp_path: Path, layout: Layout) -> None:
    rows = {key: np.zeros_like(row) for key, row in random_rows(layout, 4).items()}
    store = filled(tmp_path, layout, rows)
    assert_holds(store, rows)
    shard = only_shard(store)
    for size in (shard.stat().st_size - 1, 100, 0):
        with shard.open("r+b") as file:
            file.truncate(size)
        for key in rows:
            with pytest.raises(Damaged, match=key) as told:
                Store(tmp_path, RECIPE, layout).read(key)
            assert str(shard.parents[1]) in told.value.what
    (part,) = parts_of(store)
    moved = Store(tmp_path / "moved", RECIPE, layout)  # no file of it has been opened before
    shutil.copytree(part, moved.parts_folder / part.name)
    only_shard(moved).unlink()
    for key in rows:
        with pytest.raises(Damaged, match=r"the file c\..* is missing"):
            moved.read(key)


def test_a_flipped_bit_between_two_chunks_is_found_and_hurts_no_row(tmp_path: Path) -> None:
    rows = random_rows(LATENTS, 3)
    store = filled(tmp_path, LATENTS, rows)
    for bit in (8 * 124, 8 * 128 - 1):  # behind the checksum of the first chunk
        flip_bit(only_shard(store), bit)
        assert [damage.key for damage in store.verify()] == ["0-0"]
        assert_holds(Store(tmp_path, RECIPE, LATENTS), rows)
        flip_bit(only_shard(store), bit)
    assert store.verify() == []


def test_swapped_chunks_are_found_though_each_is_whole(tmp_path: Path) -> None:
    rows = random_rows(LATENTS, 3)
    store = filled(tmp_path, LATENTS, rows)
    shard = only_shard(store)
    stored = 128  # 4 * 3 * 5 values and a checksum, and what is left to a round number
    data = shard.read_bytes()
    shard.write_bytes(data[stored : 2 * stored] + data[:stored] + data[2 * stored :])
    # a plain reader cannot know
    assert np.array_equal(zarr.open_array(shard.parent, mode="r")[0], rows["0-1"])
    for key in ("0-0", "0-1"):
        with pytest.raises(Damaged, match="another row"):
            store.read(key)
    assert np.array_equal(store.read("0-2"), rows["0-2"])
    assert [damage.key for damage in store.verify()] == ["0-0", "0-1"]


def test_a_chunk_taken_out_of_the_index_is_not_zeros(tmp_path: Path) -> None:
    rows = random_rows(LATENTS, 3)
    store = filled(tmp_path, LATENTS, rows)
    array = zarr.open_array(only_shard(store).parent, mode="r+")
    array[1] = 0  # zarr-python drops a chunk that holds the fill value alone
    with pytest.raises(Damaged, match="missing from the shard's index"):
        Store(tmp_path, RECIPE, LATENTS).read("0-1")


def test_swapped_shards_of_two_parts_are_found(tmp_path: Path) -> None:
    store = filled(
        tmp_path, LATENTS, random_rows(LATENTS, 2, seed=1), random_rows(LATENTS, 2, seed=2)
    )
    one, two = (part / "latents" / "c.0.0.0.0" for part in parts_of(store))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert {damage.key for damage in store.verify()} == store.keys()


def test_a_part_of_another_store_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, LATENTS, random_rows(LATENTS, 1))
    other = Store(tmp_path, {"another": "recipe"}, LATENTS)
    shutil.copytree(store.parts_folder, other.parts_folder)
    with pytest.raises(Damaged, match="another store"):
        other.missing(["0-0"])


def test_verify_names_the_damaged_rows_and_only_looks_where_it_is_told(tmp_path: Path) -> None:
    rows = random_rows(EMBEDS, 5)
    store = filled(tmp_path, EMBEDS, rows)
    flip_bit(only_shard(store), 8 * 3)  # in the first row
    (damage,) = store.verify()
    assert (damage.part, damage.key) == (parts_of(store)[0], "0-0")
    assert "checksum" in damage.what
    assert store.verify(["0-1", "0-2"]) == []
    assert len(store.verify(["0-0"])) == 1


def test_the_advice_for_a_damaged_row_mends_it(tmp_path: Path) -> None:
    first, second = random_rows(LATENTS, 2, seed=1), random_rows(LATENTS, 2, seed=2)
    store = filled(tmp_path, LATENTS, first, second)
    damaged = part_with(store, "1-0")
    flip_bit(damaged / "latents" / "c.0.0.0.0", 0)
    with pytest.raises(Damaged) as told:
        store.read("1-0")
    assert str(damaged) in told.value.what
    assert "Delete that folder" in told.value.do
    shutil.rmtree(damaged)
    mended = Store(tmp_path, RECIPE, LATENTS)
    missing = mended.missing([*first, *second])
    assert missing == list(first)
    with mended.writing():
        mended.add(missing, [first[key] for key in missing])
    assert_holds(mended, first | second)


def test_a_newer_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qedit.cache.format.manifest.FORMAT", 2)
    rows = random_rows(LATENTS, 1)
    store = filled(tmp_path, LATENTS, rows)
    monkeypatch.setattr("qedit.cache.format.manifest.FORMAT", 1)
    with pytest.raises(Damaged, match="format 2"):
        Store(tmp_path, RECIPE, LATENTS).read("0-0")
    assert len(store.verify()) == 1
