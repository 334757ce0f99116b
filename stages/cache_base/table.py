"""The rows of the modulation table that are missing, made part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...cache.files.free_space import refuse_full_disk
from ...cache.store.dropping import pass_over_torn
from ...cache.store.store import Store
from ..frozen_base.modulation_table import lowest_sigma, sizes_of
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.timesteps import every_timestep, row_key, row_shape
from ..stage import Progress
from ..stores.pins import Pin, pin_before_writing
from ..stores.run import Run

# Of these many bytes a pass over the weights computes rows; fewer, larger passes read the
# weights less often.
PASS_BYTES = 1 << 30
PART_BYTES = 1 << 28


@dataclass
class TableWork:
    """A modulation table, the timesteps that it is to hold, and those that it lacks."""

    checkpoint: Checkpoint
    table: Store
    wanted: list[int]
    missing: list[int]
    row_bytes: int

    @classmethod
    def of(cls, run: Run, *, drops: bool) -> TableWork | None:
        """Return what is missing; None where the settings use no table.

        Args:
            drops: whether parts that have lost a file are given up.
        """
        checkpoint, table = run.checkpoint, run.modulation_table
        if table is None:
            return None
        pass_over_torn([table], drops=drops)
        wanted = every_timestep(lowest_sigma=lowest_sigma(run.settings))
        there = table.keys()
        layers, channels = row_shape(**sizes_of(checkpoint))
        return cls(
            checkpoint=checkpoint,
            table=table,
            wanted=wanted,
            missing=[bits for bits in wanted if row_key(bits) not in there],
            row_bytes=2 * layers * channels,
        )

    @property
    def missing_bytes(self) -> int:
        return len(self.missing) * self.row_bytes

    def make(self, run: Run, progress: Progress, *, device: str) -> None:
        """Compute and store what is missing, once it is recorded that the run needs it.

        Raises:
            QeditError: there is no room.
            Locked: another process is making it, or removes rows there.
        """
        from ..models.device import best_device
        from ..models.transformer.modulation import ModulationWeights

        refuse_full_disk({self.table.path: self.missing_bytes}, what="the modulation table")
        pin_before_writing(run, [self.table], Pin())
        found = self.checkpoint
        weights = ModulationWeights(
            found.transformer, remember=found.remember, device=best_device(device)
        )
        passes = list(_cut(self.missing, PASS_BYTES // self.row_bytes))
        layers = len(passes) * len(weights.layers)
        with (
            self.table.writing(),
            progress.bar(layers, "cache-base", unit="layer") as advance,
        ):
            for timesteps in passes:
                rows = weights.rows(timesteps, advance)
                self._store(dict(zip(timesteps, rows, strict=True)))

    def _store(self, rows: dict[int, Any]) -> None:
        from ..stores.bfloat16 import bits_of

        for timesteps in _cut(list(rows), PART_BYTES // self.row_bytes):
            keys = [row_key(bits) for bits in timesteps]
            self.table.add(keys, [bits_of(rows[bits]) for bits in timesteps])


def _cut(timesteps: list[int], size: int) -> Iterator[list[int]]:
    size = max(1, size)
    for start in range(0, len(timesteps), size):
        yield timesteps[start : start + size]
