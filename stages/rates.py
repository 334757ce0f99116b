"""How fast a stage was the last time, so that a dry run can say how long it will take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache.atomic import write_json
from ..cache.errors import QeditError
from ..config.configuration import Configuration
from .models.checkpoint import Checkpoint
from .orphans import count_orphans
from .shelf import Shelf

RATES = "rates.json"
SHORTEST_SECONDS = 5.0  # what took less is no measure of what takes long


def remember_rate(
    configuration: Configuration,
    shelf: Shelf,
    *,
    devices: str,
    count_bytes: int,
    seconds: float,
) -> None:
    """Keep how many bytes of rows a second were made, for this recipe and these devices."""
    if seconds < SHORTEST_SECONDS or count_bytes <= 0:
        return
    path = _path(configuration)
    write_json(path, _rates(path) | {_name(shelf, devices): count_bytes / seconds})


def about_seconds(
    configuration: Configuration, shelf: Shelf, *, devices: str, count_bytes: int
) -> float | None:
    """How long so many bytes of rows will take; None where no rate is known."""
    rate = _rates(_path(configuration)).get(_name(shelf, devices))
    return count_bytes / rate if isinstance(rate, int | float) and rate > 0 else None


def orphans_of(
    configuration: Configuration, checkpoint: Checkpoint, shelves: Sequence[Shelf]
) -> int | None:
    """How many rows in the stores of these shelves no table names any more; None: unknown."""
    stores = [store for shelf in shelves for store in shelf.stores()]
    try:
        return count_orphans(configuration, checkpoint, stores)
    except QeditError:
        return None  # what is to be done is known all the same; `gc` says what is wrong


def foreseen(
    configuration: Configuration,
    checkpoint: Checkpoint,
    shelves: Sequence[Shelf],
    *,
    devices: str,
    missing: int,
    count_bytes: int,
) -> dict[str, Any]:
    """What a dry run says: rows missing and orphaned, bytes, and seconds if a rate is known."""
    seconds = about_seconds(configuration, shelves[0], devices=devices, count_bytes=count_bytes)
    said: Mapping[str, Any] = {} if seconds is None or not missing else {"about_seconds": seconds}
    return {
        "missing": missing,
        "bytes": count_bytes,
        "orphaned": orphans_of(configuration, checkpoint, shelves),
        **said,
    }


def _name(shelf: Shelf, devices: str) -> str:
    return f"{shelf.stores()[0].fingerprint} on {devices}"


def _path(configuration: Configuration) -> Path:
    return Path(configuration.settings.cache_dir) / RATES


def _rates(path: Path) -> dict[str, Any]:
    """What is remembered; nothing if the file is not ours."""
    try:
        said = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(said) if isinstance(said, dict) else {}
