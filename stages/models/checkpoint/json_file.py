"""The small JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ....cache.errors import NotComplete


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        NotComplete: there is no such file, or something else in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotComplete(
            f"The checkpoint is not complete: {path} is missing.",
            "Finish the download, or name a complete checkpoint in diffusers' folder layout.",
        ) from None
    except ValueError as error:
        raise NotComplete(f"{path} is not JSON: {error}.", "Download the file again.") from error
    if not isinstance(value, dict):
        raise NotComplete(f"{path} does not hold a JSON object.", "Download the file again.")
    return value
