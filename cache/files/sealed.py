"""JSON that says its own checksum, so that a flipped bit is no other name, number or path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .checksum import crc32c
from .fingerprint import canonical_json

CHECKSUM = "crc32c"


def sealed(said: Mapping[str, Any]) -> dict[str, Any]:
    """`said`, as it will be read again, with its checksum."""
    as_read = json.loads(json.dumps(said))
    return {**as_read, CHECKSUM: checksum_of(as_read)}


def unsealed(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was sealed; what earlier versions wrote without a checksum as it is.

    Raises:
        ValueError: it is something else.
    """
    left = dict(said)
    if CHECKSUM in left and left.pop(CHECKSUM) != checksum_of(left):
        raise ValueError("it does not match its checksum")
    return left


def checksum_of(said: Mapping[str, Any]) -> str:
    """Of all fields but the checksum."""
    return f"{crc32c(canonical_json(said).encode()):08x}"
