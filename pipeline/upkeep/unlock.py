"""`qedit unlock`: every lock, and which of them only a user can know to be stale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ...cache.errors import Damaged
from ...cache.files.claims import claims_in
from ...cache.files.lock import LOCK_FILE, Holder, holder_of
from ...cache.files.owner import can_be_asked, is_dead
from .caches import Caches


@dataclass(frozen=True)
class Locks:
    """Every lock: a file and the process that it names."""

    held: list[tuple[Path, Holder]]

    def here(self) -> list[tuple[Path, Holder]]:
        """Return those of processes that are known to run, which are never removed."""
        return [
            (path, holder)
            for path, holder in self.held
            if can_be_asked(holder.owner) and not is_dead(holder.owner)
        ]

    def free(self) -> list[tuple[Path, Holder]]:
        """Return the others: of ended processes, and of hosts that cannot be asked."""
        alive = {path for path, _ in self.here()}
        return [(path, holder) for path, holder in self.held if path not in alive]


def find_locks(caches: Caches) -> Locks:
    """Find every lock and claim in the cache folders and the output folders of the runs there."""
    stores = caches.every_store()
    held = [(claim.path, claim.holder) for store in stores for claim in claims_in(store)]
    for folder in (*stores, *caches.folders, *_output_dirs(caches)):
        holder = holder_of(folder)
        if holder is not None:
            held.append((folder / LOCK_FILE, holder))
    return Locks(held)


def _output_dirs(caches: Caches) -> list[Path]:
    """Return the output_dir of this run and of those that have left records; each once."""
    found = {caches.run.output_dir: Path(caches.run.settings.output_dir)}
    for record in chain.from_iterable(caches.found_records.values()):
        if not isinstance(record, Damaged):  # `gc` tells of one that cannot be read
            found.setdefault(Path(record.output_dir), Path(record.output_dir))
    return list(found.values())
