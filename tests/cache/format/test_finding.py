"""Rows are found by their keys, however many there are and whatever the keys look like."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from qedit.cache.format import finding
from qedit.cache.format.finding import Numbers, count_different

DIGESTS = [hashlib.blake2b(b"%d" % at, digest_size=16).hexdigest() for at in range(300)]
ODD = ["", "a", "ab", "\0a", "ümlaut", "the same end 12345678", "and another 12345678", "12345678"]


@pytest.mark.parametrize("many", [1, 100, 10_000])
def test_every_key_names_its_row_and_no_other_key_does(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "MANY", many)
    keys = [*DIGESTS[:150], *ODD, *DIGESTS[150:250]]
    numbers = Numbers()
    for begin, end in ((0, 40), (40, 150), (150, 150), (150, 200), (200, len(keys))):
        column = pa.array(["before", *keys[begin:end]], pa.string())[1:]  # part of a larger one
        numbers.add(pa.chunked_array([column[:7], column[7:]]))
        if begin:
            assert [numbers.get(key) for key in keys[:end]] == list(range(end))
    absent = [*DIGESTS[250:], "b", "yet another 12345678", "\0", DIGESTS[0][1:], "f" * 32]
    assert [numbers.get(key) for key in absent] == [None] * len(absent)


def test_a_key_of_several_rows_names_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "MANY", 3)
    numbers = Numbers()
    for keys in (["a", "b", "a"], ["b"]):
        numbers.add(pa.chunked_array([pa.array(keys)]))
    assert numbers.get("a") in (0, 2)
    assert numbers.get("b") in (1, 3)


def test_threads_that_ask_first_at_once_are_all_told() -> None:
    for _ in range(20):
        numbers = Numbers()
        for begin in range(0, 300, 10):
            numbers.add(pa.chunked_array([pa.array(DIGESTS[begin : begin + 10])]))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(numbers.get, DIGESTS)) == list(range(300))


@pytest.mark.parametrize(
    ("columns", "count"),
    [
        ([], 0),
        ([[]], 0),
        ([["a"]], 1),
        ([ODD, DIGESTS], len(ODD) + 300),
        ([ODD, ODD[:5], ["a", "a"]], len(ODD)),
        ([["x 12345678", "y 12345678"], ["x 12345678", "z"]], 3),
    ],
)
def test_keys_are_counted_once_each_though_their_ends_be_alike(
    columns: list[list[str]], count: int
) -> None:
    chunks = [pa.array(["before", *keys], pa.string())[1:] for keys in columns]
    assert count_different(pa.chunked_array(chunks, pa.string())) == count
