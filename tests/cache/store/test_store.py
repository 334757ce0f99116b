"""Rows come back as they were added, or not at all."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from numcodecs import Blosc
from store_rows import (
    LAYOUTS,
    PACKED,
    RECIPE,
    assert_holds,
    encoded_rows,
    filled,
    packed,
    part_with,
    parts_of,
    random_rows,
)

from qedit.cache.errors import AnotherRecipe, Locked, NotComplete
from qedit.cache.files.fingerprint import fingerprint
from qedit.cache.files.owner import Owner, this_process
from qedit.cache.format.grid import place
from qedit.cache.format.index import replace_indices
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store


@LAYOUTS
def test_rows_come_back(tmp_path: Path, layout: Layout) -> None:
    parts = [
        random_rows(layout, 5, seed=1),
        random_rows(layout, 1, seed=2),
        random_rows(layout, 3, seed=3),
    ]
    store = filled(tmp_path, layout, *parts)
    everything = parts[0] | parts[1] | parts[2]
    assert_holds(store, everything)
    assert_holds(Store(tmp_path, RECIPE, layout), everything)
    assert len(store) == 9


@LAYOUTS
def test_rows_are_read_into_a_place_of_a_batch_and_nothing_beside_it(
    tmp_path: Path, layout: Layout
) -> None:
    rows = random_rows(layout, 5)
    for recipe in (RECIPE, PACKED):
        store = Store(tmp_path, recipe, layout)
        with store.adding():
            store.add(list(rows), list(rows.values()))
        for key, row in rows.items():
            batch = np.full((3, *row.shape), 7, np.uint16)
            assert store.read(key, into=batch[1]).base is batch
            assert np.array_equal(batch[1], row)
            assert (batch[[0, 2]] == 7).all()
            for space in (np.empty((2, *row.shape), np.uint16), row[..., ::-1]):
                with pytest.raises(ValueError, match="cannot be read into"):
                    store.read(key, into=space)


@LAYOUTS
def test_zarr_python_reads_the_same_bits(tmp_path: Path, layout: Layout) -> None:
    rows = random_rows(layout, 7)
    store = filled(tmp_path, layout, rows)
    (part,) = parts_of(store)
    array = zarr.open_array(part / layout.array, mode="r")
    assert array.metadata.zarr_format == 3
    assert array.dtype == np.uint16
    assert array.attrs["qedit_dtype"] == "bfloat16"
    assert array.metadata.dimension_names == layout.dimension_names
    table = pq.read_table(part / "rows.parquet").to_pylist()
    assert [line["key"] for line in table] == list(rows)
    for line in table:
        slab = array[line["start"] : line["start"] + line["length"]]
        expected = rows[line["key"]]
        assert np.array_equal(slab if layout.ragged else slab[0], expected)


@LAYOUTS
def test_special_bits_come_back(tmp_path: Path, layout: Layout) -> None:
    shape = (9, 4) if layout.ragged else (2, 3, 4)
    bits = {"zeros": 0, "minus zero": 0x8000, "nan": 0x7FC1, "infinity": 0x7F80, "ones": 0xFFFF}
    rows = {name: np.full(shape, value, np.uint16) for name, value in bits.items()}
    assert_holds(filled(tmp_path, layout, rows), rows)


def test_rows_may_be_views_in_any_order_of_memory(tmp_path: Path) -> None:
    row = np.arange(24, dtype=np.uint16).reshape(4, 3, 2).transpose(2, 1, 0)
    assert_holds(filled(tmp_path, LATENTS, {"a": row}), {"a": row})


def test_parts_may_differ_in_shape(tmp_path: Path) -> None:
    wide = {"wide": np.ones((4, 2, 8), np.uint16)}
    tall = {"tall": np.ones((4, 8, 2), np.uint16)}
    assert_holds(filled(tmp_path, LATENTS, wide, tall), wide | tall)


@LAYOUTS
@pytest.mark.parametrize("packs", [False, True], ids=["plain", "packed"])
def test_a_reader_written_from_the_document_alone_reads_it(
    tmp_path: Path, layout: Layout, packs: bool
) -> None:
    """docs/cache-format.md, "Arrays" and "Reading a row fast and safely", word by word."""
    rows = encoded_rows(layout) if packs else random_rows(layout, 7)
    store = (packed if packs else filled)(tmp_path, layout, rows)
    (part,) = parts_of(store)
    manifest = json.loads((part / "manifest.json").read_text())
    (name, cut), *_ = manifest["arrays"].items()
    assert cut.get("compression") == ("zstd" if packs else None)
    unpack = Blosc("zstd", 1, Blosc.BITSHUFFLE).decode if packs else bytes
    for line in pq.read_table(part / "rows.parquet").to_pylist():
        shard, within = divmod(line["start"], cut["shard"][0])
        data = (part / name / f"c.{shard}{'.0' * (len(cut['shape']) - 1)}").read_bytes()
        entries = cut["shard"][0] // cut["chunk"][0]
        index = data[-16 * entries - 4 : -4]
        assert struct.unpack("<I", data[-4:]) == (google_crc32c.value(index),)
        pairs = list(struct.iter_unpack("<QQ", index))
        first = within // cut["chunk"][0]
        bits, checksums = b"", b""
        for offset, size in pairs[first : first + math.ceil(line["length"] / cut["chunk"][0])]:
            stored, checksum = data[offset : offset + size - 4], data[offset + size - 4 :][:4]
            assert struct.unpack("<I", checksum) == (google_crc32c.value(stored),)
            chunk = bytes(unpack(stored))
            assert len(chunk) == 2 * math.prod(cut["chunk"])
            bits, checksums = bits + chunk, checksums + checksum
        assert line["crc32c"] == google_crc32c.value(checksums)
        row = np.frombuffer(bits, "<u2").reshape(-1, *cut["chunk"][1:])[: line["length"]]
        assert np.array_equal(row if layout.ragged else row[0], rows[line["key"]])


def test_long_rows_fill_several_shards_and_none_crosses_a_border(tmp_path: Path) -> None:
    lengths = [9000, 7000, 400, 16384, 30]
    rows = {str(n): np.full((n, 2), n % 2**16, np.uint16) for n in lengths}
    store = filled(tmp_path, EMBEDS, rows)
    assert_holds(store, rows)
    (part,) = parts_of(store)
    for line in pq.read_table(part / "rows.parquet").to_pylist():
        last = line["start"] + line["length"] - 1
        assert line["start"] // 16384 == last // 16384
    array = zarr.open_array(part / "embeds", mode="r")
    assert array.shards == (16384, 2)
    assert len(list((part / "embeds").glob("c.*"))) == 4


def test_a_row_longer_than_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16385"):
        place([16385], (2,), chunk=64)


def test_files_grow_with_bytes_and_not_with_rows(tmp_path: Path) -> None:
    few = filled(tmp_path / "few", LATENTS, random_rows(LATENTS, 2))
    many = filled(tmp_path / "many", LATENTS, random_rows(LATENTS, 64))
    assert len(list(few.path.rglob("*"))) == len(list(many.path.rglob("*")))
    sizes = [path.stat().st_size for path in many.path.rglob("*") if path.is_file()]
    assert many.nbytes() == sum(sizes)
    assert many.nbytes() > few.nbytes() + 62 * 4 * 3 * 5 * 2


def test_missing_keeps_the_order_and_names_each_once(tmp_path: Path) -> None:
    store = filled(tmp_path, LATENTS, {"b": np.ones((1, 1, 1), np.uint16)})
    assert store.missing(["d", "b", "a", "d", "c", "a"]) == ["d", "a", "c"]
    assert store.missing([]) == []
    assert "b" in store
    assert "a" not in store


def test_looking_at_a_store_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", RECIPE, LATENTS)
    assert store.missing(["a"]) == ["a"]
    assert (len(store), store.nbytes(), store.verify()) == (0, 0, [])
    with pytest.raises(NotComplete, match="no row a"):
        store.read("a")
    with pytest.raises(NotComplete):
        store.shape("a")
    assert list(tmp_path.iterdir()) == []


def test_stores_of_different_recipes_lie_side_by_side(tmp_path: Path) -> None:
    one, two = (Store(tmp_path, {"vae": name}, LATENTS) for name in ("one", "two"))
    row = np.ones((1, 2, 2), np.uint16)
    with one.writing(), two.writing():
        one.add(["a"], [row])
        two.add(["a"], [row * 2])
    assert {path.name for path in tmp_path.iterdir()} == {one.fingerprint, two.fingerprint}
    assert one.read("a")[0, 0, 0] == 1
    assert two.read("a")[0, 0, 0] == 2
    assert json.loads((one.path / "recipe.json").read_text()) == {"vae": "one"}
    assert one.fingerprint == fingerprint({"vae": "one"})


def test_a_recipe_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, LATENTS, random_rows(LATENTS, 1))
    for text in ('{"stage": "other"}', "{"):
        (store.path / "recipe.json").write_text(text)
        with pytest.raises(AnotherRecipe, match=store.fingerprint):
            store.writing().__enter__()


def test_add_outside_of_writing_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    store, row = Store(tmp_path, RECIPE, LATENTS), np.ones((1, 1, 1), np.uint16)
    with pytest.raises(RuntimeError, match="writing"):
        store.add(["a"], [row])
    with store.writing():
        store.add(["a"], [row])
    with pytest.raises(RuntimeError, match="writing"):
        store.add(["b"], [row])
    assert store.keys() == {"a"}


@pytest.mark.parametrize(
    ("layout", "keys", "rows"),
    [
        (LATENTS, ["a"], []),
        (LATENTS, ["a", "a"], [np.ones((1, 2, 2), np.uint16)] * 2),
        (LATENTS, ["a"], [np.ones((1, 2, 2), np.float32)]),
        (LATENTS, ["a"], [np.ones((2, 2), np.uint16)]),
        (LATENTS, ["a", "b"], [np.ones((1, 2, 2), np.uint16), np.ones((1, 2, 3), np.uint16)]),
        (LATENTS, ["a"], [np.ones((1, 0, 2), np.uint16)]),
        (EMBEDS, ["a"], [np.ones((1, 2, 2), np.uint16)]),
        (EMBEDS, ["a"], [np.ones((0, 2), np.uint16)]),
        (EMBEDS, ["a", "b"], [np.ones((1, 2), np.uint16), np.ones((1, 3), np.uint16)]),
    ],
)
def test_what_is_no_row_of_the_layout_is_refused(
    tmp_path: Path, layout: Layout, keys: list[str], rows: list[np.ndarray]
) -> None:
    store = Store(tmp_path, RECIPE, layout)
    with store.writing():
        with pytest.raises(ValueError, match=r"row"):
            store.add(keys, rows)
        store.add([], [])
    assert parts_of(store) == []


def test_one_writer_at_a_time_sees_what_the_other_added(tmp_path: Path) -> None:
    one, two = (Store(tmp_path, RECIPE, LATENTS) for _ in range(2))
    assert two.missing(["a"]) == ["a"]
    with one.writing():
        with pytest.raises(Locked, match="adding latents"):
            two.writing().__enter__()
        one.add(["a"], [np.ones((1, 1, 1), np.uint16)])
    with two.writing():
        assert two.missing(["a"]) == []


def test_a_key_in_two_parts_is_one_row(tmp_path: Path) -> None:
    row = np.ones((1, 2, 2), np.uint16)
    store = filled(tmp_path, LATENTS, {"a": row, "b": row * 2}, {"b": row * 2, "c": row * 3})
    for seen in (store, Store(tmp_path, RECIPE, LATENTS)):
        assert_holds(seen, {"a": row, "b": row * 2, "c": row * 3})


def test_a_part_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    first, second = random_rows(LATENTS, 2, seed=1), random_rows(LATENTS, 2, seed=2)
    store = filled(tmp_path, LATENTS, first, second)
    (parts_of(store)[1] / "manifest.json").unlink()
    (store.parts_folder / ".DS_Store").touch()
    (store.parts_folder / "empty").mkdir()
    left = Store(tmp_path, RECIPE, LATENTS)
    assert left.keys() in (first.keys(), second.keys())


DEAD = replace(this_process(), started="1")
OF_ANOTHER_HOST = replace(this_process(), host="another")


@pytest.mark.parametrize("owner", [DEAD, OF_ANOTHER_HOST, this_process()])
def test_a_manifest_that_is_lost_is_told_from_one_that_was_never_written(
    tmp_path: Path, owner: Owner
) -> None:
    store = filled(tmp_path, LATENTS, random_rows(LATENTS, 2))
    part = store.parts_folder / f"{owner}~7"
    parts_of(store)[0].rename(part)
    assert store.verify() == []
    begun = part / f".manifest.json~{owner}~8.partial"
    (part / "manifest.json").rename(begun)
    assert store.verify() == [], "killed before the manifest had its name"
    begun.unlink()
    (damage,) = store.verify()
    assert (damage.part, damage.what) == (part, "manifest.json is missing")
    (part / "rows.parquet").unlink()
    assert store.verify() == [], "killed before the table"


def test_a_part_that_an_index_names_was_complete(tmp_path: Path) -> None:
    """Its rows are read still; that it is damaged is said, whatever else is missing."""
    rows = random_rows(LATENTS, 2)
    store = filled(tmp_path, LATENTS, rows)
    listing = store.listing()
    assert listing is not None
    replace_indices(store.path, listing, store=store.fingerprint)
    (part,) = parts_of(store)
    for name in ("manifest.json", "rows.parquet"):
        (part / name).unlink()
        (damage,) = store.verify()
        assert (damage.part, damage.what) == (part, "manifest.json is missing")
    assert_holds(Store(tmp_path, RECIPE, LATENTS), rows)


def test_unfinished_parts_of_the_living_and_of_strangers_stay(tmp_path: Path) -> None:
    store = filled(tmp_path, LATENTS, random_rows(LATENTS, 1))
    (mine,) = parts_of(store)
    (mine / "manifest.json").unlink()
    (store.parts_folder / "stranger").mkdir()
    with store.writing():
        pass
    assert parts_of(store) == sorted([mine, store.parts_folder / "stranger"])


def test_what_died_while_it_was_being_removed_is_not_there(tmp_path: Path) -> None:
    kept, going = random_rows(LATENTS, 1, seed=1), random_rows(LATENTS, 1, seed=2)
    store = filled(tmp_path, LATENTS, kept, going)
    part = part_with(store, "2-0")
    dead = replace(this_process(), started="1")
    part.rename(store.parts_folder / f".{part.name}~{dead}~7.partial")
    assert_holds(Store(tmp_path, RECIPE, LATENTS), kept)
    with store.writing():
        assert len(parts_of(store)) == 1
    assert_holds(store, kept)
