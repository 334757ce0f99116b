"""Reads of JSON files that raise one error, whatever is wrong with the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Broken
from ..regular_file import json_in
from .failing_disk import bytes_of

LARGEST_BYTES = 1 << 24


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises:
        FileNotFoundError: there is none.
        Broken: it holds something else, is no regular file or too large, or the disk cannot
            read it.
    """
    return object_in(bytes_of(path, LARGEST_BYTES))


def object_in(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Raises:
        Broken: it is something else.
    """
    try:
        value = json_in(data)
    except ValueError as error:
        raise Broken(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Broken("it is not a JSON object")
    return value
