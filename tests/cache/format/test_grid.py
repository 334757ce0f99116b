"""Chunks are as long as rows of that length need."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qedit.cache.format.grid import chunk_length


@pytest.mark.parametrize(
    ("lengths", "chunk"),
    # with 200: 200 in chunks of 8, 224 in 32, 256 in 64; an eighth more than 200 is 225
    [([64, 128], 64), ([200], 32), ([7, 6, 8], 8), ([1, 1], 8), ([1400], 64), ([28], 32)],
)
def test_short_rows_get_short_chunks(lengths: Sequence[int], chunk: int) -> None:
    assert chunk_length(lengths) == chunk
