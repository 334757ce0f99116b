"""The speed of a stage the last time, so that a dry run can say how long it will take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.files.atomic import readable_json
from ...cache.files.decides_nothing import put_text, read_or_empty
from ...cache.store.store_set import StoreSet
from ...config.configuration import Configuration

RATES = "rates.json"
SHORTEST_SECONDS = 5.0  # what took less is no measure of what takes long


@dataclass(frozen=True)
class Rate:
    """The bytes of rows that a stage computes in a second, for one recipe and these devices."""

    configuration: Configuration
    store_set: StoreSet
    devices: str

    def remember(self, *, count_bytes: int, seconds: float) -> None:
        """Write the rate of a run that took long enough to be a measure."""
        if seconds >= SHORTEST_SECONDS and count_bytes > 0:
            rates = read_or_empty(self._path) | {self._name: count_bytes / seconds}
            put_text(self._path, readable_json(rates))

    def foreseen(self, *, missing: int, count_bytes: int) -> dict[str, Any]:
        """Return rows missing and their bytes, and the seconds they take if a rate is known."""
        facts: dict[str, Any] = {"missing": missing, "bytes": count_bytes}
        rate = read_or_empty(self._path).get(self._name)
        if missing and isinstance(rate, int | float) and rate > 0:
            facts["about_seconds"] = count_bytes / rate
        return facts

    @property
    def _name(self) -> str:
        return f"{self.store_set.stores()[0].fingerprint} on {self.devices}"

    @property
    def _path(self) -> Path:
        return Path(self.configuration.settings.cache_dir) / RATES
