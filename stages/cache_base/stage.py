"""cache-base: the modulation table and the quantised base, where training uses them.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time

from ...config.configuration import Configuration
from ..frozen_base import wants_table
from ..models.checkpoint import open_checkpoint
from ..stage import Outcome, Progress
from .table import TableWork

STAGE = "cache-base"


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
) -> Outcome:
    """Bring the caches of the base to hold what training with these settings uses.

    Raises:
        QeditError: there is no room for what is missing.
        Locked: another process is making it.
    """
    started = time.monotonic()
    settings = configuration.settings
    checkpoint = open_checkpoint(settings)
    work = TableWork.of(checkpoint, settings) if wants_table(settings) else None
    wanted, missing = (len(work.wanted), len(work.missing)) if work else (0, 0)
    if work and missing and not dry_run:
        work.make(progress, device=device)
    lines = () if work else ("No part of the base can be kept ready for these settings.",)
    return Outcome(
        stage=STAGE,
        wanted=wanted,
        kept=wanted - missing,
        computed=0 if dry_run else missing,
        failed=0,
        seconds=time.monotonic() - started,
        where=str(work.table.path) if work else "",
        unit="timesteps",
        facts={"missing": missing, "bytes": work.missing_bytes if work else 0} if dry_run else {},
        lines=lines,
    )
