"""`qedit gc`: what may go, shown before it goes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...cache.errors import Locked
from ...cache.files.atomic import remove, sweep
from ...cache.files.claims import CLAIMS, alone_in
from ...cache.files.free_space import tree_bytes
from ...cache.files.lock import holder_of, writer_lock
from ...cache.files.owner import is_dead
from ...cache.store.leftovers import (
    RECENT_SECONDS,
    Leftover,
    leftovers_in,
    may_be_at_work,
    seconds_unchanged,
    unfinished_parts,
)
from ...cache.store.rejected_rows import FOLDER as REJECTED
from ...cache.store.repacking import carry_out
from ...config.configuration import Configuration
from ...stages.frozen_base.folder import base_folder
from ...stages.frozen_base.quantized import QuantizedBase
from ...stages.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ...stages.stores.pins import USES, Kept, use_of
from ...stages.stores.run_stores import open_stores
from ..terminal.output import counted, duration, size
from .old_tables import left_by_pair
from .other_runs import paired_by_others
from .renew_pins import renew_notes
from .unlock import PAIRS
from .unused_bases import bases_in, tables_in, unused_bases
from .unused_rows import (
    PARTS,
    Orphans,
    Unnamed,
    all_of,
    find_orphans,
    folders_of,
    other_uses,
    refuse_without_pairs,
    stores_beside,
    unnamed_in,
    unnamed_orphans,
)

SPOOL = "spool"  # and the one where a stage leaves pictures for the next
DOING = "qedit gc"


@dataclass
class Leftovers:
    """What `gc` found.

    Attributes:
        held: the folders that were locked meanwhile; None: none was, and nothing may go.
        left_alone: what a process that cannot be asked may be at.
        others: the `output_dir` of every other run, of which nothing goes.
    """

    held: Collection[Path] | None = None
    orphans: list[Orphans] = field(default_factory=list)
    unnamed: list[Unnamed] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # and folders, of pairs tables
    bases: list[QuantizedBase] = field(default_factory=list)
    unfinished: list[Leftover] = field(default_factory=list)
    left_alone: list[Leftover] = field(default_factory=list)
    others: Collection[str] = ()

    @property
    def count_bytes(self) -> int:
        files = sum(bytes_of_path(path) for path in self._paths())
        return files + sum(one.count_bytes for one in self.orphans)

    def lines(self) -> Iterator[str]:
        """What may go, and why."""
        for one in self.orphans:
            yield from _of_a_store(one)
        for unnamed in self.unnamed:
            why = "its recipe.json cannot be read, and no run asks for it"
            yield f"{unnamed.path}: {why}, {size(bytes_of_path(unnamed.path))}"
        for path in self.files:
            why = "made by former settings" if path.is_dir() else "another has taken its place"
            yield f"{path}: {why}, {size(bytes_of_path(path))}"
        for base in self.bases:
            what = f"the base in {base.recipe.get('precision')}, which no settings and no run use"
            yield f"{base.path}: {what}, {size(bytes_of_path(base.path))}"
        for leftover in self.unfinished:
            yield f"{leftover.path}: {leftover}, {size(bytes_of_path(leftover.path))}"

    def left_lines(self) -> Iterator[str]:
        """What stays for now that would go otherwise."""
        for one in self.left_alone:
            seconds = seconds_unchanged(one.path)
            when = f"{duration(seconds)} ago" if seconds >= 0 else "at a time still to come"
            yield (
                f"{one.path}: of process {one.owner.pid} on {one.owner.host}, which may be at work "
                f"(it changed {when}); left alone until nothing has for {RECENT_SECONDS // 3600} h"
            )
        if self.others:
            yield f"Kept: what other runs want, in {', '.join(self.others)}."

    def _paths(self) -> list[Path]:
        return [*self.files, *(one.path for one in self.places())]

    def places(self) -> list[Kept]:
        """What goes as a whole, beside the files of pairs tables."""
        return [*self.unnamed, *self.bases, *self.unfinished]

    def as_object(self) -> dict[str, Any]:
        """What `--json` says."""
        return {
            "stage": "gc",
            "rows": sum(one.rows for one in self.orphans),
            "bytes": self.count_bytes,
            "files": [str(path) for path in self._paths()],
            "stores": [str(one.store.path) for one in self.orphans],
            "left_alone": [str(one.path) for one in self.left_alone],
            "kept_for": list(self.others),
        }


def _of_a_store(one: Orphans) -> Iterator[str]:
    where, bytes_of_it = one.store.path, size(one.count_bytes)
    if one.all_of_it:
        rows = "all of it, damaged as it is" if one.broken else f"all {counted(one.rows, 'row')}"
        yield f"{where}: {rows}, {bytes_of_it}; no table and no run asks for this recipe"
        return
    for part in one.broken:
        yield f"{part}: a damaged part of another recipe's store, {size(bytes_of_path(part))}"
    parts = len(one.plan.moved)
    if one.plan.rows:
        anew = f"; what stays of {counted(parts, 'part')} is written anew" if parts else ""
        say = f"{one.plan.rows} of {counted(len(one.store), 'row')} that no table names"
        yield f"{where}: {say}, {bytes_of_it}{anew}"
    elif parts:
        yield f"{where}: {counted(parts, 'part')} to be joined"


def collect(
    configuration: Configuration, *, compact: bool = False, held: Collection[Path] | None = None
) -> Leftovers:
    """Find what no table and no run names; nothing is changed.

    Args:
        held: what `alone` has locked, to find that alone; None: to look at everything.

    Raises:
        Damaged, NotComplete: what this run or another one names cannot be known.
    """
    checkpoint = open_checkpoint(configuration.settings)
    refuse_without_pairs(configuration, checkpoint)
    stores = open_stores(configuration, checkpoint)
    uses = other_uses(configuration, stores)
    tables, bases = unused_bases(configuration, checkpoint, uses)
    orphans = find_orphans(configuration, checkpoint, compact=compact)
    orphans += [all_of(table) for table in tables]
    orphans = [one for one in orphans if _is_held(one.store.path, held)]
    unnamed = [one for one in unnamed_orphans(configuration, stores) if _is_held(one.path, held)]
    bases = [base for base in bases if _is_held(base.path, held)]
    everyone = [*uses, *paired_by_others(configuration)]
    files = left_by_pair(configuration, everyone)
    files = files if _is_held(_pairs_root(configuration), held) else []
    whole: list[Kept] = [*unnamed, *bases, *(one.store for one in orphans if one.all_of_it)]
    gone = {*files, *(one.path for one in whole)}
    unfinished = [
        one
        for one in _unfinished(configuration, checkpoint, held)
        if gone.isdisjoint((one.path, *one.path.parents))
    ]
    free = _in_no_lock(configuration)
    left_alone = [one for one in free if may_be_at_work(one)]
    unfinished += [one for one in free if one not in left_alone]
    others = sorted({use.output_dir for use in everyone})
    return Leftovers(held, orphans, unnamed, files, bases, unfinished, left_alone, others)


def _is_held(path: Path, held: Collection[Path] | None) -> bool:
    """Whether gc may judge what lies at `path`: not what came into being after it took its locks.

    Its maker may be about to note who uses it.
    """
    return held is None or path.resolve() in held


def _pairs_root(configuration: Configuration) -> Path:
    return Path(configuration.settings.cache_dir) / PAIRS


def bytes_of_path(path: Path) -> int:
    """How many bytes a file, or a tree, takes; 0 if it has gone."""
    if path.is_file():
        return path.stat().st_size
    return tree_bytes(path)


def _unfinished(
    configuration: Configuration, checkpoint: Checkpoint, held: Collection[Path] | None
) -> Iterator[Leftover]:
    """What writers that run no more, as far as can be known, left in the caches."""
    for store in _stores(configuration, checkpoint):
        if not _is_held(store, held):
            continue
        for folder in ("", PARTS, CLAIMS, USES, REJECTED):
            yield from leftovers_in(store / folder)
        yield from unfinished_parts(store / PARTS)
    root, base = _pairs_root(configuration), base_folder(configuration.settings)
    # a folder whose only store was being removed holds none any more
    places = dict.fromkeys(folders_of(open_stores(configuration, checkpoint)))
    if _is_held(base, held):
        places[base] = None
    if _is_held(root, held):
        tables = [Path(folder) for folder in use_of(configuration).pairs]
        places |= dict.fromkeys([root, *tables])
        places |= {table: None for folder in tables for table in sorted(folder.glob("*/"))}
    for place in places:
        yield from leftovers_in(place)


def _in_no_lock(configuration: Configuration) -> list[Leftover]:
    """The same in the folders that nobody locks: only their age tells whether it is in use."""
    cache_dir = Path(configuration.settings.cache_dir)
    return [one for place in (cache_dir / SPOOL, cache_dir) for one in leftovers_in(place)]


def _stores(configuration: Configuration, checkpoint: Checkpoint) -> list[Path]:
    """The folders of every store and table that gc looks at, each once."""
    stores = open_stores(configuration, checkpoint)
    found = [store.path for store in stores_beside(stores)]
    found += [one.path for one in unnamed_in(stores)]
    found += [table.path for table in tables_in(configuration.settings)]
    return list({path.resolve(): path for path in found}.values())


@contextmanager
def alone(configuration: Configuration) -> Iterator[Collection[Path]]:
    """Have nobody add rows or remove any while the block runs, in any store of the run.

    What is found inside, in the folders that the block is given, may go: who begins to fill a
    store notes so first, under its lock. What comes into being meanwhile is in none of them.

    Raises:
        Locked: somebody fills one of the stores, or trains on what they hold.
    """
    checkpoint = open_checkpoint(configuration.settings)
    root, base = _pairs_root(configuration), base_folder(configuration.settings)
    held = _stores(configuration, checkpoint)
    with ExitStack() as stack:
        stack.enter_context(alone_in(held, doing=DOING))
        for folder in (root, base):
            if folder.is_dir():
                stack.enter_context(writer_lock(folder, doing=DOING))
                held.append(folder)
        if base in held:  # they have no locks of their own
            held += [one.path for one in bases_in(configuration.settings)]
        _refuse_training(configuration, checkpoint)
        yield frozenset(path.resolve() for path in held)


def _refuse_training(configuration: Configuration, checkpoint: Checkpoint) -> None:
    """Raise while a run trains: the table it has begun with may have been replaced since."""
    uses = other_uses(configuration, open_stores(configuration, checkpoint))
    uses += paired_by_others(configuration)
    own = use_of(configuration).output_dir
    for folder in dict.fromkeys((own, *(use.output_dir for use in uses))):
        holder = holder_of(Path(folder))
        if holder is not None and not is_dead(holder.owner):
            raise Locked(
                f"{folder} is being written by {holder}, and reads these caches.",
                "Wait for it, or end it. If you know that it runs no more: `qedit unlock`.",
            )


def clear(configuration: Configuration, found: Leftovers) -> None:
    """Remove what was found; inside the block of `alone` that it was found in."""
    if found.held is None:
        raise RuntimeError("what was found without the locks of `alone` may be in use by now")
    renew_notes(configuration, open_checkpoint(configuration.settings), held=found.held)
    for one in found.orphans:
        if one.all_of_it:
            remove(one.store.path)
            continue
        for part in one.broken:
            remove(part)
        if one.plan:
            with one.store.adding():
                carry_out(one.store, one.plan)
    for path in found.files:
        sweep(path.parent)
        remove(path)
    for place in found.places():
        sweep(place.path.parent)
        remove(place.path)
