"""Names made of content: equal content has equal names, everywhere and always."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qedit.cache.files.fingerprint import (
    canonical_json,
    digest_bytes,
    digest_file,
    fingerprint,
    key_of,
)


def test_a_fingerprint_is_the_start_of_the_sha256_of_the_sorted_json() -> None:
    said = '{"a":[1,2.5,null,true],"b":{"é":"x"}}'
    recipe = {"b": {"é": "x"}, "a": [1, 2.5, None, True]}
    assert canonical_json(recipe) == said
    assert fingerprint(recipe) == hashlib.sha256(said.encode()).hexdigest()[:16]


def test_order_does_not_matter_but_values_and_types_do() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    recipes = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {}]
    assert len({fingerprint(recipe) for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_what_has_no_one_way_to_be_written_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        fingerprint({"a": value})


def test_a_key_has_32_hex_digits_and_follows_its_content() -> None:
    key = key_of(["pixels", 1])
    assert len(key) == 32
    assert int(key, 16) >= 0
    assert key == key_of(["pixels", 1])
    assert key != key_of(["pixels", 2])


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_has_the_digest_of_its_bytes_whatever_its_name(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(data[:size])
        expected = hashlib.blake2b(data[:size], digest_size=16).hexdigest()
        assert digest_file(tmp_path / name) == digest_bytes(data[:size]) == expected
