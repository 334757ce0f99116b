"""Stores of format 1 as they were written once: every later version must read them.

The first is from before chunks began at multiples of 64 bytes. None is ever made anew, unless
its test itself was wrong: the first by `pytest tests/promises/test_golden_store.py --renew` in a
checkout without tests/golden/store-1, the second as tests/golden/make_store.py says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_store import KINDS, row, store_of
from paths import GOLDEN

from qedit.cache.format.index import indices_in
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store

STORE = GOLDEN / "store-1"
KEYS = [f"{number:032x}" for number in range(5)]


def _row(number: int, layout: Layout) -> np.ndarray:
    """Bits that follow from the number alone, by arithmetic and not by a generator of chance."""
    shape = (3 + 20 * number, 6) if layout.ragged else (4, 2, 3)
    count = int(np.prod(shape))
    return ((np.arange(count) * 40503 + number * 7919) % 65536).astype(np.uint16).reshape(shape)


def _store(folder: Path, layout: Layout) -> Store:
    return Store(folder, {"golden": 1, "rows": layout.array}, layout)


@pytest.mark.parametrize("layout", [LATENTS, EMBEDS], ids=["latents", "embeds"])
def test_a_store_of_format_1_is_read(layout: Layout, pytestconfig: pytest.Config) -> None:
    store = _store(STORE, layout)
    if pytestconfig.getoption("--renew") and not store.path.exists():
        with store.writing():
            for some in (KEYS[:3], KEYS[3:]):
                store.add(some, [_row(int(key, 16), layout) for key in some])
    assert store.keys() == set(KEYS)
    for key in KEYS:
        assert np.array_equal(store.read(key), _row(int(key, 16), layout))
    assert store.verify() == []
    assert store.torn() == set()


@pytest.mark.parametrize(("layout", "also", "has_index"), KINDS)
def test_one_with_gaps_or_packed_or_with_an_index_is_read(
    layout: Layout, also: dict[str, str], has_index: bool
) -> None:
    store = store_of(GOLDEN / "store-2", layout, also)
    assert store.keys() == set(KEYS)
    assert len(indices_in(store.path)) == int(has_index)
    for key in KEYS:
        assert np.array_equal(store.read(key), row(int(key, 16), layout))
        part, where = store._find(key)
        shard, _, _ = part._array._place(where.start, where.length)
        assert (shard.gap_bytes > 0) == (not also)
    assert store.verify() == []
    assert store.torn() == set()
