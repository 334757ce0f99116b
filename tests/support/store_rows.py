"""Makes stores of random rows, and finds their files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qedit.cache.errors import Damaged, NotComplete
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store

RECIPE = {"stage": "test", "encoder": "abc"}
PACKED = {**RECIPE, "compression": "zstd"}
LAYOUTS = pytest.mark.parametrize("layout", [LATENTS, EMBEDS], ids=["latents", "embeds"])

Rows = dict[str, np.ndarray]


def random_rows(layout: Layout, count: int, *, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    lengths = itertools.cycle([5, 70, 1, 64, 8])
    shapes = [(next(lengths), 6) if layout.ragged else (4, 3, 5) for _ in range(count)]
    return {
        f"{seed}-{number}": random.integers(0, 2**16, shape, dtype=np.uint16)
        for number, shape in enumerate(shapes)
    }


def filled(folder: Path, layout: Layout, *parts: Rows) -> Store:
    store = Store(folder, RECIPE, layout)
    with store.writing():
        for rows in parts:
            store.add(list(rows), list(rows.values()))
    return store


def assert_holds(store: Store, rows: Rows) -> None:
    assert store.keys() == rows.keys()
    for key, row in rows.items():
        read = store.read(key)
        assert read.dtype == np.uint16
        assert np.array_equal(read, row)
        assert store.shape(key) == row.shape


def parts_of(store: Store) -> list[Path]:
    return sorted(store.parts_folder.iterdir())


def only_shard(store: Store) -> Path:
    (part,) = parts_of(store)
    (shard,) = (part / store.layout.array).glob("c.*")
    return shard


def part_with(store: Store, key: str) -> Path:
    tables = {part: pq.read_table(part / "rows.parquet") for part in parts_of(store)}
    return next(part for part, table in tables.items() if key in table["key"].to_pylist())


def assert_not_believed(
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


def packed(folder: Path, layout: Layout, rows: Rows) -> Store:
    store = Store(folder, PACKED, layout)
    with store.adding():
        store.add(list(rows), list(rows.values()))
    return store


def encoded_rows(layout: Layout) -> Rows:
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
