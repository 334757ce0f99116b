"""JSON with a checksum inside, so that corruption is detected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .checksum import crc32c
from .fingerprint import canonical_json

CHECKSUM = "crc32c"


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields`, as they will be read again, with their checksum added."""
    as_read = json.loads(json.dumps(fields))
    return {**as_read, CHECKSUM: checksum_of(as_read)}


def unsealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without the checksum; those of earlier versions, without one, as they are.

    Raises:
        ValueError: it is something else.
    """
    left = dict(fields)
    if CHECKSUM in left and left.pop(CHECKSUM) != checksum_of(left):
        raise ValueError("it does not match its checksum")
    return left


def checksum_of(fields: Mapping[str, Any]) -> str:
    """Return the checksum of all fields but the checksum itself."""
    return f"{crc32c(canonical_json(fields).encode()):08x}"
