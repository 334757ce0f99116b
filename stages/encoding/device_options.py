"""Devices, readers and batch sizes: they decide how fast rows are made, and no result."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_WORKERS = 16
SHARE_OF_MEMORY = 0.7  # of what is free: what an allocator loses between its blocks stays


@dataclass(frozen=True)
class DeviceOptions:
    """The options that decide speed alone.

    Attributes:
        device: "auto" or a device's name.
        devices: several of them: one process each, which share the work.
        workers: threads that read and resize pictures; None: by the number of cores.
        vae_batch_size, text_batch_size: pictures or reference sets; None: as many as fit.
        spool: the folder in which one stage leaves pictures for the next, if it does.
    """

    device: str = "auto"
    devices: tuple[str, ...] = ()
    workers: int | None = None
    vae_batch_size: int | None = None
    text_batch_size: int | None = None
    spool: Path | None = None

    @property
    def where(self) -> str:
        """Return the devices' names, under which speeds are remembered."""
        return ",".join(self.devices) or self.device

    @property
    def readers(self) -> int:
        """Return the number of reading threads: one core is left to the encoder's thread."""
        if self.workers is not None:
            return self.workers
        return max(1, min(MOST_WORKERS, available_cores() - 1) // max(1, len(self.devices)))


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class BatchSize:
    """Decides how many items go through an encoder together: as asked, or as many as fit.

    What fits is a budget in an encoder's own measure of size (pixels, tokens), so that it holds
    for items of every size. Running out of memory halves it and never ends a run.

    Args:
        asked: a fixed number, or None for as many as fit.
        most: what None is at most; more is no faster.
        budget: what fits where memory cannot be asked (a CPU), in the items' measure.
    """

    def __init__(self, asked: int | None, *, most: int, budget: int) -> None:
        self.most = most if asked is None else asked
        self._asked = self._measured = asked is not None
        self._budget: int | None = None if asked is not None else budget

    def measure(self, once: Callable[[], object], *, cost: int, device: Any) -> None:
        """Find out, at the first call, how much fits on a torch `device`: by encoding one item
        `once`.

        One item's memory is measured, so batches depend on the device and not on what was
        encoded before. A device that cannot be asked keeps the budget it has.
        """
        if self._measured:
            return
        self._measured = True
        from ..models.device import memory_taken  # without work to do, torch is not imported

        taken = memory_taken(once, device=device)
        if taken is not None:
            self._budget = int(cost * SHARE_OF_MEMORY * taken.free_bytes / max(1, taken.used_bytes))

    def of(self, cost: int) -> int:
        """Return how many items of this size go together; at least one.

        Where free memory decides it is a power of two: a little more or less of it, as a rerun
        may find, makes the same batches.
        """
        if self._budget is None:
            return self.most
        fitting = max(1, min(self.most, self._budget // cost))
        return fitting if self._asked else 1 << (fitting.bit_length() - 1)

    def was_too_much(self, count: int, *, cost: int) -> None:
        """Take half as much from now on: `count` items of this size did not fit."""
        self._budget = min(self._budget or count * cost, count * cost // 2)
