"""A store of format 1 as it was written once: every later version must read it.

To make it anew (never, unless this test itself was wrong): `pytest tests/test_golden_store.py
--renew` in a checkout without tests/golden/store-1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qedit.cache.store import EMBEDS, LATENTS, Layout, Store

GOLDEN = Path(__file__).resolve().parent / "golden" / "store-1"
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
    store = _store(GOLDEN, layout)
    if pytestconfig.getoption("--renew") and not store.path.exists():
        with store.writing():
            for some in (KEYS[:3], KEYS[3:]):
                store.add(some, [_row(int(key, 16), layout) for key in some])
    assert store.keys() == set(KEYS)
    for key in KEYS:
        assert np.array_equal(store.read(key), _row(int(key, 16), layout))
    assert store.verify() == []
