"""How rows are made, never which: nothing in here decides a result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MOST_WORKERS = 16


@dataclass(frozen=True)
class Ways:
    """What a user may say about speed.

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
        """The devices' names, as rates are remembered by."""
        return ",".join(self.devices) or self.device

    @property
    def readers(self) -> int:
        """How many threads read: one core is left to the thread that drives the encoder."""
        if self.workers is not None:
            return self.workers
        return max(1, min(MOST_WORKERS, available_cores() - 1) // max(1, len(self.devices)))


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
