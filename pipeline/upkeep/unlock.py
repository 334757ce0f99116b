"""`qedit unlock`: every lock and claim in the caches and the output folders of a run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from ...cache.errors import Damaged
from ...cache.files.claims import claims_in
from ...cache.files.lock import LOCK_FILE, Holder, holder_of
from .caches import Caches

Held = list[tuple[Path, Holder]]
"""The files of locks or claims, and the processes that they name."""


def find_locks(caches: Caches) -> Held:
    """Find every lock and claim in the cache folders and the output folders of the runs there."""
    stores = caches.every_store()
    claims = [(claim.path, claim.holder) for store in stores for claim in claims_in(store)]
    return claims + locks_of((*stores, *caches.folders, *output_dirs(caches)))


def locks_of(folders: Iterable[Path]) -> Held:
    """Return the locks of those of some folders that have one."""
    holders = [(folder / LOCK_FILE, holder_of(folder)) for folder in folders]
    return [(path, holder) for path, holder in holders if holder is not None]


def output_dirs(caches: Caches) -> list[Path]:
    """Return the output_dir of this run and of those that have left records; each once."""
    found = chain.from_iterable(caches.found_records.values())
    # `gc` tells of a record that cannot be read
    others = (Path(record.output_dir) for record in found if not isinstance(record, Damaged))
    return list(dict.fromkeys([caches.run.output_dir, *others]))
