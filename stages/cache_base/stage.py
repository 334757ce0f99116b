"""cache-base: the modulation table and the quantised base, where training uses them.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from typing import Any

from ...cache.files.claims import LOCK_PATIENCE_SECONDS
from ...config.configuration import Configuration
from ...config.settings import Settings
from ..frozen_base.folder import base_folder
from ..frozen_base.modulation_table import modulation_table, wants_table
from ..frozen_base.quantized import QuantizedBase, quantized_base, wants_quantized
from ..models.checkpoint.checkpoint import Checkpoint
from ..stage import Outcome, Progress
from ..stores.pins import begin_use, keep_places
from ..stores.run import Run
from .table import TableWork

STAGE = "cache-base"


def run(
    run: Run,
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
    configuration, settings, checkpoint = run.configuration, run.settings, run.checkpoint
    base = quantized_base(checkpoint, settings) if wants_quantized(settings) else None
    if base is not None:
        _refuse_device(settings, device=device)
    if not dry_run:
        _keep(checkpoint, base, configuration)
    drops, wants = not dry_run, wants_table(settings)
    table = TableWork.of(checkpoint, settings, drops=drops) if wants else None
    wanted = (len(table.wanted) if table else 0) + (1 if base else 0)
    quantizes = base is not None and not base.is_there()
    missing = (len(table.missing) if table else 0) + quantizes
    if not dry_run:
        if table and table.missing:
            table.make(configuration, progress, device=device)
        if base is not None and quantizes:
            from .quantizing import write_quantized

            write_quantized(base, checkpoint, configuration, progress, device=device)
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


def _keep(checkpoint: Checkpoint, base: QuantizedBase | None, configuration: Configuration) -> None:
    """Have the run's note in what is there, before it is seen what is missing.

    `gc` of another run has removed it by then, or keeps it.

    Raises:
        Locked: somebody is at work there.
    """
    settings = configuration.settings
    if wants_table(settings):
        table = modulation_table(checkpoint, settings)
        begin_use([table] if table.path.is_dir() else [], configuration)
    if base is not None:
        keep_places(
            [base],
            configuration,
            lock=base_folder(settings),
            patience_seconds=LOCK_PATIENCE_SECONDS,
        )


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
