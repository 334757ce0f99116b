"""`qedit gc` and `qedit unlock`: what may go, shown before it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache.atomic import remove, sweep
from ..cache.claims import claims_in, refuse_claims
from ..cache.lock import LOCK_FILE, Holder, holder_of, writer_lock
from ..cache.owner import is_dead, this_process
from ..cache.repacking import Repacking, bytes_of_part, carry_out
from ..config.configuration import Configuration
from ..stages.base_orphans import tables_in, unused_bases
from ..stages.frozen_base import QuantizedBase, base_folder
from ..stages.models.checkpoint import open_checkpoint
from ..stages.orphans import Orphans, find_orphans, left_by_pair, other_uses, stores_beside
from ..stages.stores import open_stores
from .report import size

PAIRS = "pairs"  # the folder in `cache_dir` that `pair` locks


@dataclass
class Leftovers:
    """What `gc` found."""

    orphans: list[Orphans] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # and folders, of pairs tables
    pairs: Path = Path()  # where the lock of the pairs tables lies
    bases: list[QuantizedBase] = field(default_factory=list)
    removed: bool = False

    @property
    def count_bytes(self) -> int:
        files = sum(bytes_of_path(path) for path in self._paths())
        return files + sum(one.count_bytes for one in self.orphans)

    def lines(self) -> Iterator[str]:
        for one in self.orphans:
            if one.all_of_it:
                yield (
                    f"{one.store.path}: all {len(one.store)} rows, {size(one.count_bytes)}; no "
                    "table and no run asks for this recipe"
                )
                continue
            if one.plan.rows:
                say = f"{one.plan.rows} of {len(one.store)} rows that no table names"
                yield f"{one.store.path}: {say}, {size(one.count_bytes)}"
            if one.plan.moved:
                yield f"{one.store.path}: {len(one.plan.moved)} parts to be joined"
        for path in self.files:
            why = "made by former settings" if path.is_dir() else "another has taken its place"
            yield f"{path}: {why}, {size(bytes_of_path(path))}"
        for base in self.bases:
            what = f"the base in {base.recipe.get('precision')}, which no settings and no run use"
            yield f"{base.path}: {what}, {size(bytes_of_path(base.path))}"

    def _paths(self) -> list[Path]:
        return [*self.files, *(base.path for base in self.bases)]

    def as_object(self) -> dict[str, Any]:
        """What `--json` says."""
        return {
            "stage": "gc",
            "rows": sum(one.rows for one in self.orphans),
            "bytes": self.count_bytes,
            "files": [str(path) for path in self._paths()],
            "stores": [str(one.store.path) for one in self.orphans],
            "removed": self.removed,
        }


def collect(configuration: Configuration, *, compact: bool = False) -> Leftovers:
    """Find what no table and no run names; nothing is changed."""
    checkpoint = open_checkpoint(configuration.settings)
    orphans = find_orphans(configuration, checkpoint, compact=compact)
    uses = other_uses(configuration, open_stores(configuration, checkpoint))
    tables, bases = unused_bases(configuration, checkpoint, uses)
    orphans += [Orphans(table, True, Repacking()) for table in tables]
    pairs = Path(configuration.settings.cache_dir) / PAIRS
    return Leftovers(orphans, left_by_pair(configuration, uses), pairs, bases)


def bytes_of_path(path: Path) -> int:
    """How many bytes a file, or a tree, takes; 0 if it has gone."""
    if path.is_file():
        return path.stat().st_size
    return bytes_of_part(path)


def clear(found: Leftovers) -> None:
    """Remove what was found; raises Locked while somebody writes there."""
    for one in found.orphans:
        if one.all_of_it:
            with writer_lock(one.store.path, doing="qedit gc"):
                refuse_claims(one.store.path)
                remove(one.store.path)
        else:
            with one.store.writing():
                carry_out(one.store, one.plan)
    if found.files:
        with writer_lock(found.pairs, doing="qedit gc"):
            for path in found.files:
                sweep(path.parent)
                remove(path)
    for base in found.bases:
        with writer_lock(base.path.parent, doing="qedit gc"):
            sweep(base.path.parent)
            remove(base.path)


@dataclass(frozen=True)
class Locks:
    """Who holds what: a file and the process that it names."""

    held: list[tuple[Path, Holder]]

    def here(self) -> list[tuple[Path, Holder]]:
        """Those of living processes of this machine, which are never touched."""
        host = this_process().host
        return [
            (path, holder)
            for path, holder in self.held
            if holder.owner.host == host and not is_dead(holder.owner)
        ]

    def free(self) -> list[tuple[Path, Holder]]:
        """The others: of the dead, and of machines that cannot be asked from here."""
        alive = {path for path, _ in self.here()}
        return [(path, holder) for path, holder in self.held if path not in alive]


def find_locks(configuration: Configuration) -> Locks:
    """Every lock and claim in the cache folders and the output folder."""
    checkpoint = open_checkpoint(configuration.settings)
    settings = configuration.settings
    stores = [*stores_beside(open_stores(configuration, checkpoint)), *tables_in(settings)]
    held = []
    for store in stores:
        held += [(claim.path, claim.holder) for claim in claims_in(store.path)]
    folders = [store.path for store in stores]
    folders.append(base_folder(settings))
    folders.append(Path(configuration.settings.cache_dir) / PAIRS)
    folders.append(Path(configuration.settings.output_dir))
    for folder in folders:
        holder = holder_of(folder)
        if holder is not None:
            held.append((folder / LOCK_FILE, holder))
    return Locks(held)
