"""Make store-2: rows of every kind in format 1, with gaps between chunks, packed and not.

Never to be made anew: every later version must read it as it is. What is written differently
one day goes into a store of its own beside it.

    python tests/golden/make_store.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from qedit.cache.format.index import replace_indices
from qedit.cache.format.part import Layout
from qedit.cache.store.store import EMBEDS, LATENTS, Store
from qedit.stages.stores.row_kinds import WEIGHTS

HERE = Path(__file__).resolve().parent
KEYS = [f"{number:032x}" for number in range(5)]
# what the recipe says besides the kind of row, and whether there is an index
KINDS = [
    (LATENTS, {}, False),
    (EMBEDS, {}, True),
    (LATENTS, {"compression": "zstd"}, True),
    (EMBEDS, {"compression": "zstd"}, False),
    (WEIGHTS, {}, False),
]


def row(number: int, layout: Layout) -> np.ndarray:
    """Bits that follow from the number alone, by arithmetic and not by a generator of chance."""
    shape = (3 + 20 * number, 6) if layout.ragged else (1 if layout is WEIGHTS else 4, 2, 3)
    count = int(np.prod(shape))
    return ((np.arange(count) * 40503 + number * 7919) % 65536).astype(np.uint16).reshape(shape)


def store_of(folder: Path, layout: Layout, also: dict[str, str]) -> Store:
    """The golden store of such rows."""
    return Store(folder, {"golden": 2, "rows": layout.array, **also}, layout)


def make(folder: Path) -> None:
    """Write every store, each in two parts."""
    for layout, also, has_index in KINDS:
        store = store_of(folder, layout, also)
        with store.writing():
            for some in (KEYS[:3], KEYS[3:]):
                store.add(some, [row(int(key, 16), layout) for key in some])
        listing = store.listing()
        if has_index and listing is not None:
            replace_indices(store.path, listing, store=store.fingerprint)


if __name__ == "__main__":
    target = HERE / "store-2"
    if target.exists():
        sys.exit(f"{target} is there: it is never made anew")
    make(target)
