"""Pin the rows that a run trains on, so that `gc` of another run keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from ...cache.errors import QeditError
from ...cache.store.store import Store
from ...config.loading import Configuration
from ..samples.table import captions_beside
from ..stage import Progress
from ..stores.pins import Use, keep_use, note_file, use_of
from ..stores.previewed import keys_only_previewed
from .data.row_check import all_rows_are_there
from .plan.training_plan import Plan, make_plan


def pin_rows(configuration: Configuration, plan: Plan, progress: Progress) -> Plan:
    """Pin the run's rows in every store that it reads; return the plan that holds then.

    The caching stages leave the same note. It is missing where other runs made all the rows, or
    where the caches were copied. Caches that may not be written will do.

    Raises:
        Locked: somebody removes rows there.
        NotComplete: `gc` of another run has removed rows before this one could say so.
    """
    stores = plan.feed.stores
    there = [store for store in stores.all_stores() if store.path.is_dir()]
    also = keys_only_previewed(plan.opened)
    use = use_of(configuration, also=also)
    before = _notes(there, use)
    try:
        keep_use(there, configuration, also=also)
    except QeditError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        progress.warn(
            f"{error.what} So nothing there says that this run trains on these caches: who cleans "
            "them up for another run may remove its rows."
        )
        return plan
    if None not in before and _notes(there, use) == before:
        return plan
    beside = captions_beside(plan.settings)
    if all_rows_are_there(configuration, plan.checkpoint, stores, beside=beside):
        return plan
    return make_plan(configuration)


def _notes(stores: Sequence[Store], use: Use) -> list[bytes | None]:
    """What the run's note says in each of these stores; None where there is none."""
    files = [note_file(store, use) for store in stores]
    return [file.read_bytes() if file.is_file() else None for file in files]
