"""Everything that may go: what lies in the caches and neither a record nor the settings keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from ...cache.errors import Broken, Damaged
from ...cache.files.claims import CLAIMS
from ...cache.files.free_space import tree_bytes
from ...cache.format.part import read_part
from ...cache.store.leftovers import Leftover, leftovers_in, unfinished_parts
from ...cache.store.rejected_rows import FOLDER as REJECTED
from ...cache.store.repacking import Repacking, plan_repacking
from ...cache.store.store import Store
from ...stages.samples.table import MANIFEST, manifest_in
from ...stages.samples.tail_key_cache import belongs_to
from ...stages.stores.pins import OLD_NOTES, RUNS
from ...stages.stores.row_kinds import SAMPLE_ROWS
from ..terminal.output import counted
from .caches import PARTS, Caches

Kind = Literal["rows", "store", "part", "unnamed", "pairs", "base", "leftover"]


@dataclass(frozen=True)
class Removable:
    """A file or folder at `path`, or some rows of the store there, and why it may go.

    Attributes:
        rows: how many rows go with it, as far as is known.
        store, plan: of kind "rows": what is done with the parts of the store at `path`.
    """

    path: Path
    kind: Kind
    count_bytes: int
    why: str
    rows: int = 0
    store: Store | None = None
    plan: Repacking | None = None

    @property
    def is_recorded(self) -> bool:
        """Return whether the record of this run may name it still: a table of former settings."""
        return self.kind == "pairs" and self.path.is_dir()


def removable_rows(
    caches: Caches, stores: Iterable[Store], *, compact: bool = False
) -> Iterator[Removable]:
    """Yield what may go of these stores of rows.

    Raises:
        Damaged: a store of these settings, or what would tell what another run needs.
        NotComplete: the tables of another run are gone, so that what it needs is unknown.
    """
    present = {store.fingerprint for store in caches.run.stores.all_stores()}
    for store in stores:
        pins = caches.pins_of(store.path)
        if not pins:
            yield _whole(store)
        if not pins or store.recipe.get("rows") not in [kind.value for kind in SAMPLE_ROWS]:
            continue  # of anything else, as a modulation table, all is needed or nothing
        broken = [] if store.fingerprint in present else broken_parts(store)
        for part in broken:
            why = "a damaged part of another recipe's store"
            yield Removable(part, "part", tree_bytes(part), why)
        if broken:
            continue  # what else may go is seen once they have gone
        plan = plan_repacking(store, caches.wanted_keys(store, pins), compact=compact)
        if plan:
            why = _of_a_plan(plan, store)
            yield Removable(store.path, "rows", plan.count_bytes, why, plan.rows, store, plan)


def removable_files(caches: Caches) -> Iterator[Removable]:
    """Yield bases, stores without a readable recipe and pairs tables that nobody asks for.

    Raises:
        Damaged, NotComplete: as `removable_rows` does.
    """
    found: list[tuple[Path, Kind, str]] = []
    for base in caches.bases:
        why = f"the base in {base.recipe.get('precision')}, which no settings and no run use"
        found.append((base.path, "base", why))
    for path in caches.unnamed:
        found.append((path, "unnamed", "its recipe.json cannot be read, and no run asks for it"))
    found = [one for one in found if not caches.pins_of(one[0])]
    for path in _former_tables(caches) if caches.run.pairs_root in caches.folders else ():
        why = "made by former settings" if path.is_dir() else "another has taken its place"
        found.append((path, "pairs", why))
    for path, kind, why in found:
        yield Removable(path, kind, bytes_of(path), why)


def unfinished(caches: Caches) -> Iterator[Leftover]:
    """Yield what writers that run no more, as far as can be known, left in the caches."""
    for store in caches.every_store():
        for folder in ("", PARTS, CLAIMS, OLD_NOTES, REJECTED):
            yield from leftovers_in(store / folder)
        yield from unfinished_parts(store / PARTS)
    places = list(caches.folders)
    if caches.run.pairs_root in caches.folders:
        tables = [caches.run.configuration.pairs_folder(main) for main in caches.run.main_datasets]
        places += chain.from_iterable((folder, *sorted(folder.glob("*/"))) for folder in tables)
    for place in dict.fromkeys(places):
        yield from leftovers_in(place)
        yield from leftovers_in(place / RUNS)


def broken_parts(store: Store) -> list[Path]:
    """Return the parts whose tables cannot be read: no row of them can."""
    try:
        store.listing()
    except Damaged:
        return [path for path in store.part_paths() if _is_broken(store, path)]
    return []


def bytes_of(path: Path) -> int:
    """Return how many bytes a file, or a tree, takes; 0 if it has gone."""
    return path.stat().st_size if path.is_file() else tree_bytes(path)


def _whole(store: Store) -> Removable:
    """Return all of a store that nobody asks for."""
    broken = broken_parts(store)
    rows = 0 if broken else len(store)  # else how many is not known
    what = "all of it, damaged as it is" if broken else f"all {counted(rows, 'row')}"
    why = f"{what}; no table and no run asks for this recipe"
    return Removable(store.path, "store", store.nbytes(), why, rows, store)


def _of_a_plan(plan: Repacking, store: Store) -> str:
    parts = counted(len(plan.moved), "part")
    if not plan.rows:
        return f"{parts} to be joined"
    anew = f"; what stays of {parts} is written anew" if plan.moved else ""
    return f"{plan.rows} of {counted(len(store), 'row')} that no table names{anew}"


def _is_broken(store: Store, path: Path) -> bool:
    try:
        read_part(path, store.layout, store=store.fingerprint)
    except Broken:
        return True
    return False


def _former_tables(caches: Caches) -> Iterator[Path]:
    """Yield folders of pairs tables that no pin names, and files that others have replaced."""
    records = (record for _, record in caches.records(own=False))
    pins = [caches.own_pin, *(pin for record in records for pin in record.pins.values())]
    for main in caches.run.main_datasets:
        folder = caches.run.configuration.pairs_folder(main)
        here = [pin for pin in pins if str(folder.resolve()) in pin.pairs]
        named = {name for pin in here for name in pin.tables}
        for table in sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")):
            former = map(Path, caches.former_tables)
            kept = {path.name for path in former if path.parent.name == table.name}
            if all(pin.tables for pin in here) and table.name not in named and not kept:
                yield table
            else:
                yield from _replaced_in(table, kept)


def _replaced_in(folder: Path, kept: Collection[str]) -> Iterator[Path]:
    """Yield files beside a pairs table whose place another one has taken, but those `kept`."""
    manifest = manifest_in(folder) or {}
    named = {manifest.get("pairs"), manifest.get("rejected_table"), *kept}
    for pattern in ("pairs-*.parquet", "rejected-*.parquet"):
        yield from (path for path in sorted(folder.glob(pattern)) if path.name not in named)
    for path in sorted(folder.glob("tails-*.parquet")):
        if not any(belongs_to(path.name, str(name)) for name in named):
            yield path
