"""A random stream belongs to its seed and its place."""

from __future__ import annotations

import numpy as np

from qedit.stages.train.data.seeds import seed_of, stream


def test_a_stream_belongs_to_its_place() -> None:
    again = stream(42, "noise", 7, 0).random(4)
    np.testing.assert_array_equal(stream(42, "noise", 7, 0).random(4), again)
    for other in (("noise", 7, 1), ("noise", 8, 0), ("sigma", 7, 0), ("noise", 70)):
        assert not np.array_equal(stream(42, *other).random(4), again)
    assert not np.array_equal(stream(43, "noise", 7, 0).random(4), again)
    assert seed_of(42, "lora", 7) != seed_of(42, "lora", 8)
