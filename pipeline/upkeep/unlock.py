"""`qedit unlock`: who holds what, and which of it only a user can know to be left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...cache.errors import Damaged
from ...cache.files.claims import claims_in
from ...cache.files.lock import LOCK_FILE, Holder, holder_of
from ...cache.files.owner import can_be_asked, is_dead
from ...config.configuration import Configuration
from ...stages.frozen_base.folder import base_folder
from ...stages.models.checkpoint.checkpoint import open_checkpoint
from ...stages.stores.pins import Kept
from ...stages.stores.run_stores import open_stores
from .other_runs import uses_of
from .unused_bases import tables_in
from .unused_rows import stores_beside, unnamed_in

PAIRS = "pairs"  # the folder in `cache_dir` that `pair` locks


@dataclass(frozen=True)
class Locks:
    """Who holds what: a file and the process that it names."""

    held: list[tuple[Path, Holder]]

    def here(self) -> list[tuple[Path, Holder]]:
        """Those of processes that are known to be alive, which are never touched."""
        return [
            (path, holder)
            for path, holder in self.held
            if can_be_asked(holder.owner) and not is_dead(holder.owner)
        ]

    def free(self) -> list[tuple[Path, Holder]]:
        """The others: of the dead, and of machines and containers that cannot be asked."""
        alive = {path for path, _ in self.here()}
        return [(path, holder) for path, holder in self.held if path not in alive]


def find_locks(configuration: Configuration) -> Locks:
    """Every lock and claim in the cache folders and the output folders of the runs there."""
    settings = configuration.settings
    stores = open_stores(configuration, open_checkpoint(settings))
    every: list[Kept] = [*stores_beside(stores), *unnamed_in(stores), *tables_in(settings)]
    held = []
    for store in every:
        held += [(claim.path, claim.holder) for claim in claims_in(store.path)]
    folders = [store.path for store in every]
    folders += [base_folder(settings), Path(settings.cache_dir) / PAIRS]
    folders += _output_dirs(every, Path(settings.output_dir))
    for folder in folders:
        holder = holder_of(folder)
        if holder is not None:
            held.append((folder / LOCK_FILE, holder))
    return Locks(held)


def _output_dirs(stores: Sequence[Kept], own: Path) -> list[Path]:
    """Of this run and of those that have left notes; each once."""
    found = {own.resolve(): own}
    for store in stores:
        with suppress(Damaged):  # `gc` tells of a note that cannot be read
            found |= {Path(use.output_dir): Path(use.output_dir) for use in uses_of(store)}
    return list(found.values())
