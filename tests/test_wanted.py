"""Keys computed column by column are those that a Sample gives one by one."""

from __future__ import annotations

import pytest

from qedit.stages.samples import Picture, Sample
from qedit.stages.wanted import tail_keys

TARGET = Picture("edited", "a.png", "0" * 32, 8, 8, (0.0, 0.0, 8.0, 8.0), (8, 8))
REFERENCE = Picture("old", "a.png", "1" * 32, 8, 8, (0.0, 0.0, 8.0, 8.0), (8, 8), (8, 8))


@pytest.mark.parametrize(
    "caption",
    ["", " ", "make it blue", 'say "no" \\ and /', "tab\tand\nline", "日本語", "\x7f\x00", "🎈"],
)
def test_tail_keys_are_those_of_the_samples(caption: str) -> None:
    sample = Sample("a.png", "edited", TARGET, (REFERENCE,), (caption,))
    assert tail_keys([sample.prefix_key], [caption]) == [sample.tail_key(caption)]
