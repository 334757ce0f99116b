"""A run that trains on rows records it in their folders: `gc` of another run keeps them then."""

from __future__ import annotations

from ...cache.errors import QeditError
from ...config.loading import Configuration
from ..stage import Progress
from ..stores.pins import pin_existing
from .data.row_check import all_rows_are_there
from .plan.training_plan import Plan, make_plan


def pin_rows(configuration: Configuration, plan: Plan, progress: Progress) -> Plan:
    """Record that the run needs every store that it reads; return the plan that holds then.

    The caching stages write the same record. It is missing where other runs made all the rows,
    or where the caches were copied. Caches that may not be written can be trained on as well.

    Raises:
        Locked: somebody removes rows there.
        NotComplete: `gc` of another run has removed rows before this one could say so.
    """
    run = plan.opened
    try:
        if pin_existing(run, run.stores.all_stores()):
            return plan
    except QeditError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        progress.warn(
            f"{error.what} So nothing there records that this run trains on these caches: `qedit "
            "gc` of another run may remove its rows."
        )
        return plan
    if all_rows_are_there(configuration, run.checkpoint, run.stores, beside=run.captions_beside):
        return plan
    return make_plan(configuration)
