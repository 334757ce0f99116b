"""Reads of JSON files that raise one error, whatever is wrong with the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import Broken
from .failing_disk import bytes_of


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises:
        FileNotFoundError: there is none.
        Broken: it holds something else, or the disk cannot read it.
    """
    try:
        value = json.loads(bytes_of(path))
    except IsADirectoryError as error:
        raise Broken("it is a folder") from error
    except (ValueError, RecursionError) as error:
        raise Broken(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Broken("it is not a JSON object")
    return value
