"""Reads all rows in the caches of a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_run import loaded

from qedit.pipeline.upkeep.caches import stores_in
from qedit.stages.stores.run import Run

# the stores of `make_run` with one reference
KINDS = {
    "cache-vae": ("vae/edited", "vae/reference-a"),
    "cache-embeds": ("conditioning_image_embeds/edited", "text_embeds/edited"),
}
# options with which both caching stages encode one item at a time
PLAIN = ("--vae-batch-size", "1"), ("--text-batch-size", "1")
Rows = dict[tuple[str, str], np.ndarray]


def rows_in(folder: Path, *stages: str) -> Rows:
    """Read the rows that these stages, or else both, have made for the run in `folder`."""
    return {
        (kind, key): store.read(key)
        for stage in stages or KINDS
        for kind in KINDS[stage]
        for store in stores_in(folder / "caches" / kind)
        for key in sorted(store.keys())
    }


def rows_here() -> dict[str, np.ndarray]:
    """Read every row of the run in the working directory, by its key."""
    stores = Run(loaded()).stores
    return {key: store.read(key) for store in stores.all_stores() for key in sorted(store.keys())}


def assert_equal(rows: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        assert np.array_equal(row, others[key]), key
