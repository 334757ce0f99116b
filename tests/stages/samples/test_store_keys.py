"""Keys computed column by column are those that a Sample gives one by one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from qedit.stages.samples import tail_key_cache as remembering
from qedit.stages.samples.sample import Picture, Sample
from qedit.stages.samples.tail_key_cache import (
    belongs_to,
    keys_of,
    remember_tails,
    remembered_tails,
    tail_digests,
)

TARGET = Picture("edited", "a.png", "0" * 32, 8, 8, (0.0, 0.0, 8.0, 8.0), (8, 8))
REFERENCE = Picture("old", "a.png", "1" * 32, 8, 8, (0.0, 0.0, 8.0, 8.0), (8, 8), (8, 8))


@pytest.mark.parametrize(
    "caption",
    ["", " ", "make it blue", 'say "no" \\ and /', "tab\tand\nline", "日本語", "\x7f\x00", "🎈"],
)
def test_tail_keys_are_those_of_the_samples(caption: str) -> None:
    sample = Sample("a.png", "edited", TARGET, (REFERENCE,), (caption,))
    digests = tail_digests([sample.prefix_key] * 2, [caption, "x"])
    assert keys_of(digests).to_pylist() == [sample.tail_key(caption), sample.tail_key("x")]


def test_the_key_of_a_tail_is_as_the_document_says() -> None:
    """docs/cache-format.md, "Which key belongs to which sample"."""
    sample = Sample("a.png", "edited", TARGET, (REFERENCE,), ("mach es grün",))
    text = f'{{"caption":"mach es grün","prefix":"{sample.prefix_key}"}}'
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    assert sample.tail_key("mach es grün") == digest


def test_tails_are_remembered_for_one_table_and_its_captions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "MANY", 2)
    table, other = tmp_path / "pairs-00aa.parquet", tmp_path / "pairs-00bb.parquet"
    digests, rows = bytes(range(48)), np.array([0, 1, 1])
    keys = [digests[at : at + 16].hex() for at in (0, 16, 32)]
    assert remembered_tails(table, (" ",)) is None
    remember_tails(table, (" ",), digests=digests, rows=rows)
    found = remembered_tails(table, (" ",))
    assert found is not None
    assert found[0].to_pylist() == keys
    assert found[1].tolist() == [0, 1, 1]
    assert remembered_tails(table, (" ", "ugly")) is None
    assert remembered_tails(other, (" ",)) is None
    (path,) = tmp_path.iterdir()
    assert belongs_to(path.name, table)
    assert not belongs_to(path.name, other)
    data = path.read_bytes()
    for spoilt in (data[:-1], data[:50] + bytes([data[50] ^ 1]) + data[51:], b""):
        path.write_bytes(spoilt)
        assert remembered_tails(table, (" ",)) is None
    remember_tails(other, (), digests=digests[:16], rows=rows[:1])  # too few to be worth a file
    assert remembered_tails(other, ()) is None
