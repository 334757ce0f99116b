"""Packed rows come back bit by bit, and damage to them is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import zarr
from damage import flip_bit
from store_rows import (
    LAYOUTS,
    PACKED,
    assert_holds,
    assert_not_believed,
    encoded_rows,
    filled,
    only_shard,
    packed,
    parts_of,
)

from qedit.cache.store.store import Layout, Store


@LAYOUTS
def test_packed_rows_come_back_bit_by_bit_and_any_zarr_reader_opens_them(
    tmp_path: Path, layout: Layout
) -> None:
    rows = encoded_rows(layout)
    store = packed(tmp_path / "packed", layout, rows)
    for opened in (store, Store(tmp_path / "packed", PACKED, layout)):
        assert_holds(opened, rows)
    assert store.verify() == []
    assert store.nbytes() < 0.9 * filled(tmp_path / "plain", layout, rows).nbytes()
    (part,) = parts_of(store)
    array = zarr.open_array(part / layout.array, mode="r")
    for line in pq.read_table(part / "rows.parquet").to_pylist():
        slab = array[line["start"] : line["start"] + line["length"]]
        assert np.array_equal(slab if layout.ragged else slab[0], rows[line["key"]])


@LAYOUTS
def test_any_damage_to_packed_rows_is_found(tmp_path: Path, layout: Layout) -> None:
    rows = encoded_rows(layout)
    shard = only_shard(packed(tmp_path, layout, rows))
    random, whole = np.random.default_rng(0), shard.read_bytes()
    for bit in random.integers(0, len(whole) * 8, 40).tolist():
        flip_bit(shard, bit)
        assert_not_believed(tmp_path, layout, rows, PACKED)
        shard.write_bytes(whole)
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        assert_not_believed(tmp_path, layout, rows, PACKED)
