"""Fingerprints, keys and digests: everything on disk is named by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import Broken
from .failing_disk import io_errors_as_damaged

FILE_BLOCK_BYTES = 1 << 20
BLOCK_ITEMS = 4096


def canonical_json(value: Any) -> str:
    """Return `value` as canonical JSON: sorted keys, no blanks, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Return the name of `recipe`, 16 hex digits: equal recipes have equal names everywhere.

    >>> fingerprint({"stage": "pair", "version": 1})
    '8f6cd239adccad91'
    """
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()[:16]


def fingerprint_of_list(name: str, items: Iterable[Any]) -> str:
    """Return `fingerprint({name: [*items]})` of a list too long to be held in memory.

    >>> fingerprint_of_list("a", iter([1, 2])) == fingerprint({"a": [1, 2]})
    True
    """
    digest = hashlib.sha256(f"{{{canonical_json(name)}:[".encode())
    left, comma = iter(items), ""
    while block := list(islice(left, BLOCK_ITEMS)):
        digest.update(f"{comma}{canonical_json(block)[1:-1]}".encode())
        comma = ","
    digest.update(b"]}")
    return digest.hexdigest()[:16]


def key_of(value: Any) -> str:
    """Return the 32-hex-digit key of a cached row: a digest of its inputs as JSON."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the 32-hex-digit content digest (blake2b-128) of `data`."""
    digest = new_digest()
    digest.update(data)
    return digest.hexdigest()


def new_digest() -> hashlib.blake2b:
    """Return an empty content digest, to be fed with `update` and read with `hexdigest`."""
    return hashlib.blake2b(digest_size=16)


def has_digest(path: Path, digest: str) -> bool:
    """Return whether the file at `path` exists and its content digest begins with `digest`.

    One that the disk cannot read has none.
    """
    try:
        with io_errors_as_damaged():
            return path.is_file() and digest_file(path).startswith(digest)
    except Broken:
        return False


def digest_file(path: Path) -> str:
    """Return the content digest of the file at `path`: it depends on the bytes alone."""
    digest = new_digest()
    with path.open("rb") as file:
        while block := file.read(FILE_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
