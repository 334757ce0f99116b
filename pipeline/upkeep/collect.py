"""`qedit gc`: what may go, shown before it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import NoRoom, NotComplete
from ...cache.files.atomic import LEFTOVER, remove, sweep
from ...cache.files.claims import alone_in
from ...cache.files.lock import at_work, writer_lock
from ...cache.files.owner import is_dead
from ...cache.store.leftovers import (
    RECENT_SECONDS,
    Leftover,
    leftovers_in,
    may_be_at_work,
    seconds_unchanged,
)
from ...cache.store.repacking import carry_out
from ...stages.frozen_base.modulation_table import base_folder
from ...stages.samples.recipe import refuse_others
from ...stages.samples.table import manifest_in, table_folder
from ...stages.stores.pins import Pin, pairs_pin, renew_record
from ...stages.stores.run import Run
from ..terminal.output import duration, size
from .caches import PARTS, Caches, folders_of
from .removable import (
    Removable,
    bytes_of,
    removable_files,
    removable_rows,
    unfinished,
)
from .unlock import Held, find_locks, locks_of, output_dirs

DOING = "qedit gc"


@dataclass(frozen=True)
class Removables:
    """All that may go, in the order in which it goes.

    Attributes:
        left_alone: what a process that cannot be asked may be at.
    """

    caches: Caches
    found: Sequence[Removable]
    left_alone: Sequence[Leftover] = ()

    @property
    def count_bytes(self) -> int:
        return sum(one.count_bytes for one in self.found)

    def lines(self) -> Iterator[str]:
        """Yield what may go, why, and how many bytes that frees."""
        for one in self.found:
            what, _, more = one.why.partition("; ")
            frees = f", {size(one.count_bytes)}" if one.count_bytes or one.rows else ""
            yield f"{one.path}: {what}{frees}" + (f"; {more}" if more else "")

    def whole(self) -> Iterator[Path]:
        """Yield what goes without anything being written: neither in part nor named by a record."""
        for one in self.found:
            if one.store is not None and one.plan is not None:
                yield from (one.store.parts_folder / name for name in one.plan.gone)
            elif not one.is_recorded:
                yield one.path

    def left_lines(self) -> Iterator[str]:
        """Yield what stays for now and would go otherwise."""
        for one in self.left_alone:
            seconds = seconds_unchanged(one.path)
            when = f"{duration(seconds)} ago" if seconds >= 0 else "at a time still to come"
            yield (
                f"{one.path}: of process {one.owner.pid} on {one.owner.host}, which may be at work "
                f"(it changed {when}); left alone until nothing has for {RECENT_SECONDS // 3600} h"
            )
        yield from self.caches.moves
        yield from (f"{path}: no record of a run; left alone" for path in self.caches.foreign)
        if self.caches.others:
            yield f"Kept: what other runs want, in {', '.join(self.caches.others)}."

    def as_object(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        paths = {one.path: one.kind in ("rows", "store") for one in self.found}
        return {
            "stage": "gc",
            "rows": sum(one.rows for one in self.found),
            "bytes": self.count_bytes,
            "files": [str(path) for path, is_store in paths.items() if not is_store],
            "stores": [str(path) for path, is_store in paths.items() if is_store],
            "left_alone": [str(one.path) for one in self.left_alone],
            "kept_for": self.caches.others,
            "moved": self.caches.moves,
        }


def collect(caches: Caches, *, compact: bool = False) -> Removables:
    """Find what no table and no run names; nothing is changed.

    Raises:
        Damaged, NotComplete: what this run or another one needs cannot be known.
    """
    refuse_without_pairs(caches.run)
    found = [*removable_rows(caches, caches.stores, compact=compact), *removable_files(caches)]
    gone = {one.path for one in found if one.plan is None}
    left = list(unfinished(caches))
    locked = {one.path for one in left}
    free = _in_no_lock(Path(caches.run.settings.cache_dir))
    left_alone = [one for one in free if may_be_at_work(one) and one.path not in locked]
    left += [one for one in free if one not in left_alone]
    paths = {one.path: one for one in left if gone.isdisjoint((one.path, *one.path.parents))}
    found += [Removable(path, "leftover", bytes_of(path), str(one)) for path, one in paths.items()]
    return Removables(caches, found, left_alone)


def refuse_without_pairs(run: Run) -> None:
    """Raise if a pairs table of these very settings is not there: its rows would seem unwanted.

    Raises:
        NotComplete: `pair` has not run since the settings changed, or has for others' pictures.
        Damaged: there is one, but its manifest cannot be read.
    """
    for main in run.main_datasets:
        manifest = manifest_in(table_folder(run.configuration, main, run.flavour))
        if manifest is None:
            raise NotComplete(
                f"There is no pairs table of dataset {main.id} with these settings yet. The rows "
                "that they need are unknown, so nothing is deleted.",
                "Run `qedit pair` first, then `qedit gc` again.",
            )
        refuse_others(run.configuration, main, manifest.get("folders", {}))


def _in_no_lock(cache_dir: Path) -> list[Leftover]:
    """Return leftovers anywhere in the caches but in parts, which are there whole or not at all.

    Nobody locks all of these folders: their age tells whether they are used.
    """
    found: list[Leftover] = []
    for place, folders, _ in os.walk(cache_dir):
        found += leftovers_in(Path(place))
        whole = place.endswith(f"{os.sep}{PARTS}")
        folders[:] = [name for name in folders if not (whole or name.endswith(LEFTOVER))]
    return found


@contextmanager
def alone(run: Run) -> Iterator[Caches]:
    """Have nobody add rows or remove any while the block runs; give what lies there.

    Who begins to fill a store records so first, under the lock of its folder. What comes into
    being meanwhile all the same is not seen, and so it stays.

    Raises:
        Locked: somebody fills one of the stores, or trains on what they hold.
    """
    with ExitStack() as stack:
        folders = folders_of(run)
        for folder in sorted(folders):
            stack.enter_context(writer_lock(folder, doing=DOING))
        caches = Caches(run, locked=folders)
        stack.enter_context(alone_in(caches.every_store(), doing=DOING))
        # the table that a run has begun to train with may have been replaced since
        _refuse_work(locks_of(output_dirs(caches)), also=", and reads these caches")
        yield caches


def _refuse_work(held: Held, *, also: str = "") -> None:
    """Raise while a process that may run holds one of these locks or claims."""
    for path, holder in held:
        if not is_dead(holder.owner):
            raise at_work(path.parent, f"written by {holder}{also}")


def remove_unused(run: Run, *, compact: bool, show: Callable[[Removables], None]) -> Removables:
    """Remove what no table and no run names, once `show` has said it; return it.

    On a full disk nobody can write so much as a lock. What goes whole then goes without one,
    piece by piece, until there is room for it.

    Raises:
        NoRoom: what is left needs something to be written first.
    """
    shown: Removables | None = None
    while True:
        try:
            with alone(run) as caches:
                found = collect(caches, compact=compact)
                if shown is None:
                    show(shown := found)
                clear(found)
                return shown
        except NoRoom:
            found = collect(Caches(run), compact=compact)
            _refuse_work(find_locks(found.caches))
            if shown is None:
                show(shown := found)
            if not found.found:
                return shown
            whole = next(found.whole(), None)
            if whole is None:
                raise
            remove(whole)
            for store in run.stores.all_stores():
                store.refresh()


def clear(found: Removables) -> None:
    """Remove what was found; inside the block of `alone` that it was found in.

    What makes room goes first. The former tables go once no record of this run names them: else
    it would be in other runs' way.
    """
    if not found.caches.is_locked:
        raise RuntimeError("what was found without the locks of `alone` may be in use by now")
    for path in found.whole():
        sweep(path.parent)
        remove(path)
    _renew_records(found.caches)
    for one in found.found:
        if one.is_recorded:
            remove(one.path)
        if one.store is not None and one.plan is not None and one.plan.moved:
            with one.store.adding():
                carry_out(one.store, one.plan)


def _renew_records(caches: Caches) -> None:
    """Have the records of this run say what it needs now: its former tables may go.

    A record that names what is gone would be in other runs' way.
    """
    run, own = caches.run, list(caches.records(own=True))
    there = {one.path for one in caches.stores} | {base.path for base in caches.bases}
    needed = {path for path in there if path.name in caches.needed}
    needed |= {run.configuration.pairs_folder(main) for main in run.main_datasets}
    for folder in dict.fromkeys(folder for folder, _ in own):
        records = [record for where, record in own if where == folder]
        names = {name for record in records for name in record.pins}
        pin = {base_folder(run.settings): Pin(), run.pairs_root: pairs_pin(run)}.get(
            folder, caches.own_pin
        )
        pins = {name: pin for name in names if folder / name in needed}
        renew_record(run, folder, records, pins)
