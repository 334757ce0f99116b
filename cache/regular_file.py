"""Reads of whole files that are looked at first: regular files, of a bounded size and depth.

A pipe would be waited for without end; a device or a huge file would take all memory.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import Broken

DEEPEST = 100  # lists and objects inside each other: ours and models' have 10 at most
TOO_DEEP = "lists or objects are nested too deeply"


class TooLarge(Broken):
    """Raised for a file of more bytes than are read."""


def refuse_irregular(path: Path, most_bytes: int | None = None) -> None:
    """Raise Broken unless `path` leads to a regular file, of at most `most_bytes` bytes."""
    facts = path.stat()
    if stat.S_ISDIR(facts.st_mode):
        raise Broken("it is a folder, not a file")
    if not stat.S_ISREG(facts.st_mode):
        raise Broken("it is not a regular file but a pipe, a socket or a device")
    if most_bytes is not None and facts.st_size > most_bytes:
        raise TooLarge(f"it has {facts.st_size} bytes, and at most {most_bytes} are read")


def content_of(path: Path, most_bytes: int | None = None) -> bytes:
    """Return the content of the file at `path`; raises as `refuse_irregular` does."""
    refuse_irregular(path, most_bytes)
    return path.read_bytes()


def json_in(text: str | bytes, **options: Any) -> Any:
    """Return the value of a JSON text.

    Args:
        options: as `json.loads` takes them.

    Raises:
        ValueError: it is not JSON.
        Broken: lists and objects are nested too deeply.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise Broken(TOO_DEEP) from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise Broken(TOO_DEEP)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
