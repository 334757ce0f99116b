"""Rows come back as they were added, or not at all."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from numcodecs import Blosc

import qedit
from qedit.cache.errors import AnotherRecipe, Damaged, Locked, NotComplete, WrongUse
from qedit.cache.files.fingerprint import fingerprint
from qedit.cache.files.owner import Owner, this_process
from qedit.cache.files.workspace import refuse_source_folder
from qedit.cache.format.grid import chunk_length, place
from qedit.cache.format.index import replace_indices
from qedit.cache.format.open_files import OpenFiles
from qedit.cache.format.part import Part
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store

RECIPE = {"stage": "test", "encoder": "abc"}
PACKED = {**RECIPE, "compression": "zstd"}
LAYOUTS = pytest.mark.parametrize("layout", [LATENTS, EMBEDS], ids=["latents", "embeds"])

Rows = dict[str, np.ndarray]


def _rows(layout: Layout, count: int, *, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    lengths = itertools.cycle([5, 70, 1, 64, 8])
    shapes = [(next(lengths), 6) if layout.ragged else (4, 3, 5) for _ in range(count)]
    return {
        f"{seed}-{number}": random.integers(0, 2**16, shape, dtype=np.uint16)
        for number, shape in enumerate(shapes)
    }


def _filled(folder: Path, layout: Layout, *parts: Rows) -> Store:
    store = Store(folder, RECIPE, layout)
    with store.writing():
        for rows in parts:
            store.add(list(rows), list(rows.values()))
    return store


def _assert_holds(store: Store, rows: Rows) -> None:
    assert store.keys() == rows.keys()
    for key, row in rows.items():
        read = store.read(key)
        assert read.dtype == np.uint16
        assert np.array_equal(read, row)
        assert store.shape(key) == row.shape


def _parts(store: Store) -> list[Path]:
    return sorted(store.parts_folder.iterdir())


def _only_shard(store: Store) -> Path:
    (part,) = _parts(store)
    (shard,) = (part / store.layout.array).glob("c.*")
    return shard


@LAYOUTS
def test_rows_come_back(tmp_path: Path, layout: Layout) -> None:
    parts = [_rows(layout, 5, seed=1), _rows(layout, 1, seed=2), _rows(layout, 3, seed=3)]
    store = _filled(tmp_path, layout, *parts)
    everything = parts[0] | parts[1] | parts[2]
    _assert_holds(store, everything)
    _assert_holds(Store(tmp_path, RECIPE, layout), everything)
    assert len(store) == 9


@LAYOUTS
def test_rows_are_read_into_a_place_of_a_batch_and_nothing_beside_it(
    tmp_path: Path, layout: Layout
) -> None:
    rows = _rows(layout, 5)
    for recipe in (RECIPE, PACKED):
        store = Store(tmp_path, recipe, layout)
        with store.adding():
            store.add(list(rows), list(rows.values()))
        for key, row in rows.items():
            for verified in (True, False):
                batch = np.full((3, *row.shape), 7, np.uint16)
                assert store.read(key, into=batch[1], verified=verified).base is batch
                assert np.array_equal(batch[1], row)
                assert (batch[[0, 2]] == 7).all()
            for space in (np.empty((2, *row.shape), np.uint16), row[..., ::-1]):
                with pytest.raises(ValueError, match="cannot be read into"):
                    store.read(key, into=space)


@LAYOUTS
def test_zarr_python_reads_the_same_bits(tmp_path: Path, layout: Layout) -> None:
    rows = _rows(layout, 7)
    store = _filled(tmp_path, layout, rows)
    (part,) = _parts(store)
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


def _packed(folder: Path, layout: Layout, rows: Rows) -> Store:
    store = Store(folder, PACKED, layout)
    with store.adding():
        store.add(list(rows), list(rows.values()))
    return store


def _like_encoded(layout: Layout) -> Rows:
    """Bits of bfloat16 as an encoder gives them: of a bell curve, with a few that are special."""
    random = np.random.default_rng(5)
    rows = {}
    for name, length in (("a", 70), ("b", 64), ("c", 3)):
        shape = (length, 96) if layout.ragged else (16, 24, 24)
        bits = random.standard_normal(shape, np.float32).view(np.uint32) >> 16
        row = bits.astype(np.uint16)
        row.flat[:6] = [0, 0x8000, 0x7FC1, 0x7F80, 0xFF80, 0xFFFF]
        rows[name] = row
    return rows


@LAYOUTS
def test_packed_rows_come_back_bit_by_bit_and_any_zarr_reader_opens_them(
    tmp_path: Path, layout: Layout
) -> None:
    rows = _like_encoded(layout)
    store = _packed(tmp_path / "packed", layout, rows)
    for opened in (store, Store(tmp_path / "packed", PACKED, layout)):
        _assert_holds(opened, rows)
        for key, row in rows.items():
            assert np.array_equal(opened.read(key, verified=False), row)
    assert store.verify() == []
    assert store.nbytes() < 0.9 * _filled(tmp_path / "plain", layout, rows).nbytes()
    (part,) = _parts(store)
    array = zarr.open_array(part / layout.array, mode="r")
    for line in pq.read_table(part / "rows.parquet").to_pylist():
        slab = array[line["start"] : line["start"] + line["length"]]
        assert np.array_equal(slab if layout.ragged else slab[0], rows[line["key"]])


@LAYOUTS
def test_any_damage_to_packed_rows_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = _like_encoded(layout)
    shard = _only_shard(_packed(tmp_path, layout, rows))
    random, whole = np.random.default_rng(0), shard.read_bytes()
    for bit in random.integers(0, len(whole) * 8, 40).tolist():
        _flip(shard, bit)
        _assert_not_believed(tmp_path, layout, rows, PACKED)
        shard.write_bytes(whole)
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        _assert_not_believed(tmp_path, layout, rows, PACKED)


def test_files_that_are_given_up_are_closed_and_opened_again(tmp_path: Path) -> None:
    """More shards than may be open, read by several threads at once."""
    rows = {f"{number}": np.full((1, 2, 2), number, np.uint16) for number in range(12)}
    store = _filled(tmp_path, LATENTS, *({key: row} for key, row in rows.items()))
    files = OpenFiles(3)
    parts = {key: store._find(key) for key in rows}
    few = {
        key: (Part(part.path, LATENTS, part._array.grid, files=files), row)
        for key, (part, row) in parts.items()
    }
    before = len(os.listdir("/proc/self/fd"))

    def read(key: str) -> bool:
        part, row = few[key]
        return all(np.array_equal(part.read(row), rows[key]) for _ in range(30))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(read, [*rows] * 4))
    assert len(os.listdir("/proc/self/fd")) == before + 3


@LAYOUTS
def test_special_bits_come_back(tmp_path: Path, layout: Layout) -> None:
    shape = (9, 4) if layout.ragged else (2, 3, 4)
    bits = {"zeros": 0, "minus zero": 0x8000, "nan": 0x7FC1, "infinity": 0x7F80, "ones": 0xFFFF}
    rows = {name: np.full(shape, value, np.uint16) for name, value in bits.items()}
    _assert_holds(_filled(tmp_path, layout, rows), rows)


def test_rows_may_be_views_in_any_order_of_memory(tmp_path: Path) -> None:
    row = np.arange(24, dtype=np.uint16).reshape(4, 3, 2).transpose(2, 1, 0)
    _assert_holds(_filled(tmp_path, LATENTS, {"a": row}), {"a": row})


def test_parts_may_differ_in_shape(tmp_path: Path) -> None:
    wide = {"wide": np.ones((4, 2, 8), np.uint16)}
    tall = {"tall": np.ones((4, 8, 2), np.uint16)}
    _assert_holds(_filled(tmp_path, LATENTS, wide, tall), wide | tall)


@LAYOUTS
@pytest.mark.parametrize("packs", [False, True], ids=["plain", "packed"])
def test_a_reader_written_from_the_document_alone_reads_it(
    tmp_path: Path, layout: Layout, packs: bool
) -> None:
    """docs/cache-format.md, "Arrays" and "Reading a row fast and safely", word by word."""
    rows = _like_encoded(layout) if packs else _rows(layout, 7)
    store = (_packed if packs else _filled)(tmp_path, layout, rows)
    (part,) = _parts(store)
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
    store = _filled(tmp_path, EMBEDS, rows)
    _assert_holds(store, rows)
    (part,) = _parts(store)
    for line in pq.read_table(part / "rows.parquet").to_pylist():
        last = line["start"] + line["length"] - 1
        assert line["start"] // 16384 == last // 16384
    array = zarr.open_array(part / "embeds", mode="r")
    assert array.shards == (16384, 2)
    assert len(list((part / "embeds").glob("c.*"))) == 4


@pytest.mark.parametrize(
    ("lengths", "chunk"),
    # with 200: 200 in chunks of 8, 224 in 32, 256 in 64; an eighth more than 200 is 225
    [([64, 128], 64), ([200], 32), ([7, 6, 8], 8), ([1, 1], 8), ([1400], 64), ([28], 32)],
)
def test_short_rows_get_short_chunks(lengths: Sequence[int], chunk: int) -> None:
    assert chunk_length(lengths) == chunk


def test_a_row_longer_than_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16385"):
        place([16385], (2,), chunk=64)


def test_files_grow_with_bytes_and_not_with_rows(tmp_path: Path) -> None:
    few = _filled(tmp_path / "few", LATENTS, _rows(LATENTS, 2))
    many = _filled(tmp_path / "many", LATENTS, _rows(LATENTS, 64))
    assert len(list(few.path.rglob("*"))) == len(list(many.path.rglob("*")))
    sizes = [path.stat().st_size for path in many.path.rglob("*") if path.is_file()]
    assert many.nbytes() == sum(sizes)
    assert many.nbytes() > few.nbytes() + 62 * 4 * 3 * 5 * 2


def test_missing_keeps_the_order_and_names_each_once(tmp_path: Path) -> None:
    store = _filled(tmp_path, LATENTS, {"b": np.ones((1, 1, 1), np.uint16)})
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
    store = _filled(tmp_path, LATENTS, _rows(LATENTS, 1))
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
    assert _parts(store) == []


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
    store = _filled(tmp_path, LATENTS, {"a": row, "b": row * 2}, {"b": row * 2, "c": row * 3})
    for seen in (store, Store(tmp_path, RECIPE, LATENTS)):
        _assert_holds(seen, {"a": row, "b": row * 2, "c": row * 3})


def test_a_part_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    first, second = _rows(LATENTS, 2, seed=1), _rows(LATENTS, 2, seed=2)
    store = _filled(tmp_path, LATENTS, first, second)
    (_parts(store)[1] / "manifest.json").unlink()
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
    store = _filled(tmp_path, LATENTS, _rows(LATENTS, 2))
    part = store.parts_folder / f"{owner}~7"
    _parts(store)[0].rename(part)
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
    rows = _rows(LATENTS, 2)
    store = _filled(tmp_path, LATENTS, rows)
    listing = store.listing()
    assert listing is not None
    replace_indices(store.path, listing, store=store.fingerprint)
    (part,) = _parts(store)
    for name in ("manifest.json", "rows.parquet"):
        (part / name).unlink()
        (damage,) = store.verify()
        assert (damage.part, damage.what) == (part, "manifest.json is missing")
    _assert_holds(Store(tmp_path, RECIPE, LATENTS), rows)


def test_unfinished_parts_of_the_living_and_of_strangers_stay(tmp_path: Path) -> None:
    store = _filled(tmp_path, LATENTS, _rows(LATENTS, 1))
    (mine,) = _parts(store)
    (mine / "manifest.json").unlink()
    (store.parts_folder / "stranger").mkdir()
    with store.writing():
        pass
    assert _parts(store) == sorted([mine, store.parts_folder / "stranger"])


def test_what_died_while_it_was_being_removed_is_not_there(tmp_path: Path) -> None:
    kept, going = _rows(LATENTS, 1, seed=1), _rows(LATENTS, 1, seed=2)
    store = _filled(tmp_path, LATENTS, kept, going)
    part = _part_of(store, "2-0")
    dead = replace(this_process(), started="1")
    part.rename(store.parts_folder / f".{part.name}~{dead}~7.partial")
    _assert_holds(Store(tmp_path, RECIPE, LATENTS), kept)
    with store.writing():
        assert len(_parts(store)) == 1
    _assert_holds(store, kept)


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _assert_not_believed(
    folder: Path, layout: Layout, rows: Rows, recipe: dict[str, str] = RECIPE
) -> None:
    """No read gives another row than the one that was written; `verify` finds the damage."""
    assert Store(folder, recipe, layout).verify() != []
    for key, row in rows.items():
        try:
            read = Store(folder, recipe, layout).read(key)
        except (Damaged, NotComplete):
            continue
        assert np.array_equal(read, row)


@LAYOUTS
def test_any_flipped_bit_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = _rows(layout, 4)
    store = _filled(tmp_path, layout, rows)
    (part,) = _parts(store)
    random = np.random.default_rng(0)
    for path in [path for path in part.rglob("*") if path.is_file()]:
        for bit in random.integers(0, path.stat().st_size * 8, 20).tolist():
            _flip(path, bit)
            _assert_not_believed(tmp_path, layout, rows)
            _flip(path, bit)
    assert store.verify() == []


@LAYOUTS
def test_any_truncation_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = _rows(layout, 4)
    (part,) = _parts(_filled(tmp_path, layout, rows))
    for path in [path for path in part.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 4, len(whole) - 2):
            path.write_bytes(whole[:size])
            _assert_not_believed(tmp_path, layout, rows)
        path.write_bytes(whole)


@LAYOUTS
def test_any_missing_file_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = _rows(layout, 4)
    (part,) = _parts(_filled(tmp_path, layout, rows))
    for path in [path for path in part.rglob("*") if path.is_file()]:
        if path.name != "manifest.json":
            moved = path.rename(tmp_path / "moved")
            _assert_not_believed(tmp_path, layout, rows)
            moved.rename(path)


@LAYOUTS
def test_every_row_of_a_missing_or_torn_shard_is_damaged(tmp_path: Path, layout: Layout) -> None:
    rows = {key: np.zeros_like(row) for key, row in _rows(layout, 4).items()}
    store = _filled(tmp_path, layout, rows)
    _assert_holds(store, rows)
    shard = _only_shard(store)
    for size in (shard.stat().st_size - 1, 100, 0):
        with shard.open("r+b") as file:
            file.truncate(size)
        for key in rows:
            with pytest.raises(Damaged, match=key) as told:
                Store(tmp_path, RECIPE, layout).read(key)
            assert str(shard.parents[1]) in told.value.what
    (part,) = _parts(store)
    moved = Store(tmp_path / "moved", RECIPE, layout)  # no file of it has been opened before
    shutil.copytree(part, moved.parts_folder / part.name)
    _only_shard(moved).unlink()
    for key in rows:
        with pytest.raises(Damaged, match=r"the file c\..* is missing"):
            moved.read(key)


def test_a_flipped_bit_between_two_chunks_is_found_and_hurts_no_row(tmp_path: Path) -> None:
    rows = _rows(LATENTS, 3)
    store = _filled(tmp_path, LATENTS, rows)
    for bit in (8 * 124, 8 * 128 - 1):  # behind the checksum of the first chunk
        _flip(_only_shard(store), bit)
        assert [damage.key for damage in store.verify()] == ["0-0"]
        _assert_holds(Store(tmp_path, RECIPE, LATENTS), rows)
        _flip(_only_shard(store), bit)
    assert store.verify() == []


def test_swapped_chunks_are_found_though_each_is_whole(tmp_path: Path) -> None:
    rows = _rows(LATENTS, 3)
    store = _filled(tmp_path, LATENTS, rows)
    shard = _only_shard(store)
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
    rows = _rows(LATENTS, 3)
    store = _filled(tmp_path, LATENTS, rows)
    array = zarr.open_array(_only_shard(store).parent, mode="r+")
    array[1] = 0  # zarr-python drops a chunk that holds the fill value alone
    with pytest.raises(Damaged, match="missing from the shard's index"):
        Store(tmp_path, RECIPE, LATENTS).read("0-1")


def test_swapped_shards_of_two_parts_are_found(tmp_path: Path) -> None:
    store = _filled(tmp_path, LATENTS, _rows(LATENTS, 2, seed=1), _rows(LATENTS, 2, seed=2))
    one, two = (part / "latents" / "c.0.0.0.0" for part in _parts(store))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert {damage.key for damage in store.verify()} == store.keys()


def test_a_part_of_another_store_is_refused(tmp_path: Path) -> None:
    store = _filled(tmp_path, LATENTS, _rows(LATENTS, 1))
    other = Store(tmp_path, {"another": "recipe"}, LATENTS)
    shutil.copytree(store.parts_folder, other.parts_folder)
    with pytest.raises(Damaged, match="another store"):
        other.missing(["0-0"])


def test_verify_names_the_damaged_rows_and_only_looks_where_it_is_told(tmp_path: Path) -> None:
    rows = _rows(EMBEDS, 5)
    store = _filled(tmp_path, EMBEDS, rows)
    _flip(_only_shard(store), 8 * 3)  # in the first row
    (damage,) = store.verify()
    assert (damage.part, damage.key) == (_parts(store)[0], "0-0")
    assert "checksum" in damage.what
    assert store.verify(["0-1", "0-2"]) == []
    assert len(store.verify(["0-0"])) == 1


def test_the_advice_for_a_damaged_row_mends_it(tmp_path: Path) -> None:
    first, second = _rows(LATENTS, 2, seed=1), _rows(LATENTS, 2, seed=2)
    store = _filled(tmp_path, LATENTS, first, second)
    damaged = _part_of(store, "1-0")
    _flip(damaged / "latents" / "c.0.0.0.0", 0)
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
    _assert_holds(mended, first | second)


def _part_of(store: Store, key: str) -> Path:
    tables = {part: pq.read_table(part / "rows.parquet") for part in _parts(store)}
    return next(part for part, table in tables.items() if key in table["key"].to_pylist())


def test_a_newer_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qedit.cache.format.manifest.FORMAT", 2)
    rows = _rows(LATENTS, 1)
    store = _filled(tmp_path, LATENTS, rows)
    monkeypatch.setattr("qedit.cache.format.manifest.FORMAT", 1)
    with pytest.raises(Damaged, match="format 2"):
        Store(tmp_path, RECIPE, LATENTS).read("0-0")
    assert len(store.verify()) == 1


@pytest.mark.parametrize("room", ["cache", "config", "pipeline", "stages"])
def test_source_folders_are_never_written_to(tmp_path: Path, room: str) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "qedit"\n')
    for path in (tmp_path / room, tmp_path / room / "vae" / "a", tmp_path / "x" / ".." / room):
        with pytest.raises(WrongUse, match=room) as told:
            refuse_source_folder(path)
        assert "-C" in told.value.do
    refuse_source_folder(tmp_path / "work" / room)
    refuse_source_folder(tmp_path / f"{room}2")
    refuse_source_folder(tmp_path)


def test_another_projects_folders_are_its_own_affair(tmp_path: Path) -> None:
    refuse_source_folder(tmp_path / "cache")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    refuse_source_folder(tmp_path / "cache")


def test_the_checkout_that_is_imported_is_protected() -> None:
    with pytest.raises(WrongUse):
        refuse_source_folder(Path(qedit.__file__ or "").parent / "cache")
