"""JSON with a checksum inside, so that corruption is detected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Broken
from .checksum import crc32c
from .fingerprint import canonical_json
from .json_file import read_object

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
    # it is written last: where the last field has another name and holds it, the name is damaged
    name = CHECKSUM if CHECKSUM in left else next(reversed(left), "")
    if (left.pop(name, None) == checksum_of(left)) != (name == CHECKSUM):
        raise ValueError("it does not match its checksum")
    return left if name == CHECKSUM else dict(fields)


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the fields of the record at `path`, without the checksum.

    Raises:
        FileNotFoundError: there is none.
        Broken: it is not the record that was written, or the disk cannot read it.
    """
    try:
        return unsealed(read_object(path))
    except ValueError as error:
        raise Broken(str(error)) from error


def checksum_of(fields: Mapping[str, Any]) -> str:
    """Return the checksum of all fields but the checksum itself."""
    return f"{crc32c(canonical_json(fields).encode()):08x}"
