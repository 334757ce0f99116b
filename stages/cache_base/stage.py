"""cache-base: the modulation table and the quantised base, where training uses them.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from typing import Any

from ...cache.files.claims import LOCK_PATIENCE_SECONDS
from ...config.settings import Settings
from ..frozen_base.modulation_table import base_folder
from ..frozen_base.quantized import QuantizedBase
from ..stage import Outcome, Progress
from ..stores.pins import Pin, pin_before_writing, pin_places
from ..stores.run import Run
from .table import TableWork

STAGE = "cache-base"


def run(
    run: Run,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
    fully: bool = True,
) -> Outcome:
    """Bring the caches of the base to hold what training with these settings uses.

    A quantised base that is damaged is made anew.

    Args:
        fully: whether all of the quantised base is read to see that, or headers alone: training
            checks each tensor as it loads it.

    Raises:
        QeditError: there is no room for what is missing.
        Locked: another process is making it.
    """
    started = time.monotonic()
    settings, base = run.settings, run.quantized_base
    if base is not None:
        _refuse_device(settings, device=device)
    if not dry_run:
        _pin(run)
    table = TableWork.of(run, drops=not dry_run)
    wanted = (len(table.wanted) if table else 0) + (1 if base else 0)
    damage = base.damage(fully=fully) if base is not None and base.is_there() else None
    if damage:
        progress.warn(f"{damage} The quantised base is made anew.")
    quantizes = base is not None and (damage is not None or not base.is_there())
    missing = (len(table.missing) if table else 0) + quantizes
    if not dry_run:
        if table and table.missing:
            table.make(run, progress, device=device)
        if base is not None and quantizes:
            from .quantizing import write_quantized

            write_quantized(base, run, progress, device=device, is_damaged=damage is not None)
    return Outcome(
        stage=STAGE,
        wanted=wanted,
        kept=wanted - missing,
        computed=0 if dry_run else missing,
        failed=0,
        seconds=time.monotonic() - started,
        where=str(base_folder(settings)),
        unit="pieces",
        facts=_facts(table, base, missing, dry_run=dry_run),
        lines=() if wanted else ("Nothing of the base is kept ready for these settings.",),
    )


def _pin(run: Run) -> None:
    """Record that the run needs what is there, before it is seen what is missing.

    `gc` of another run has removed it by then, or keeps it.

    Raises:
        Locked: somebody is at work there.
    """
    table, base = run.modulation_table, run.quantized_base
    if table is not None and table.path.is_dir():
        pin_before_writing(run, [table], Pin())
    if base is not None:
        pin_places(run, [base.path], Pin(), patience_seconds=LOCK_PATIENCE_SECONDS)


def _refuse_device(settings: Settings, *, device: str) -> None:
    from ..models.device import best_device
    from ..models.quantization.quantize import precision_for

    precision_for(
        settings.base_model_precision,
        device=best_device(device),
        quantizes_activations=settings.quantize_activations,
    )


def _facts(
    table: TableWork | None, base: QuantizedBase | None, missing: int, *, dry_run: bool
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if dry_run:
        facts |= {"missing": missing, "bytes": table.missing_bytes if table else 0}
    if table:
        facts["table"] = str(table.table.path)
    if base:
        facts["quantised"] = str(base.folder)
    return facts
