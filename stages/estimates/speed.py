"""How fast a stage was the last time, so that a dry run can say how long it will take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.files.atomic import write_json
from ...cache.store.store_set import StoreSet
from ...config.configuration import Configuration

RATES = "rates.json"
SHORTEST_SECONDS = 5.0  # what took less is no measure of what takes long


def remember_rate(
    configuration: Configuration,
    store_set: StoreSet,
    *,
    devices: str,
    count_bytes: int,
    seconds: float,
) -> None:
    """Store how many bytes of rows were made a second, for this recipe and these devices."""
    if seconds < SHORTEST_SECONDS or count_bytes <= 0:
        return
    path = _path(configuration)
    write_json(path, _rates(path) | {_name(store_set, devices): count_bytes / seconds})


def about_seconds(
    configuration: Configuration, store_set: StoreSet, *, devices: str, count_bytes: int
) -> float | None:
    """Return how many seconds so many bytes of rows will take; None where no rate is known."""
    rate = _rates(_path(configuration)).get(_name(store_set, devices))
    return count_bytes / rate if isinstance(rate, int | float) and rate > 0 else None


def foreseen(
    configuration: Configuration,
    store_set: StoreSet,
    *,
    devices: str,
    missing: int,
    count_bytes: int,
) -> dict[str, Any]:
    """Return the facts of a dry run: rows missing, their bytes, and seconds if a rate is known."""
    seconds = about_seconds(configuration, store_set, devices=devices, count_bytes=count_bytes)
    said: Mapping[str, Any] = {} if seconds is None or not missing else {"about_seconds": seconds}
    return {
        "missing": missing,
        "bytes": count_bytes,
        **said,
    }


def _name(store_set: StoreSet, devices: str) -> str:
    return f"{store_set.stores()[0].fingerprint} on {devices}"


def _path(configuration: Configuration) -> Path:
    return Path(configuration.settings.cache_dir) / RATES


def _rates(path: Path) -> dict[str, Any]:
    """Return the stored rates; nothing if the file is not ours."""
    try:
        said = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(said) if isinstance(said, dict) else {}
