"""Files are closed when too many are open, and opened again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from store_rows import (
    filled,
)

from qedit.cache.format.open_files import OpenFiles
from qedit.cache.format.part import Part
from qedit.cache.store.store import LATENTS


def test_files_that_are_given_up_are_closed_and_opened_again(tmp_path: Path) -> None:
    """More shards than may be open, read by several threads at once."""
    rows = {f"{number}": np.full((1, 2, 2), number, np.uint16) for number in range(12)}
    store = filled(tmp_path, LATENTS, *({key: row} for key, row in rows.items()))
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
