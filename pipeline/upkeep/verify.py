"""`qedit verify`: checks every checksum of every result and names the affected samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...cache.errors import Broken, Damaged
from ...cache.files.atomic import remove
from ...cache.files.claims import alone_in
from ...cache.files.fingerprint import has_digest
from ...cache.files.lock import writer_lock
from ...cache.files.sealed import read_sealed
from ...cache.format.index import spoilt_indices
from ...cache.format.part import read_part
from ...cache.store.dropping import drop
from ...cache.store.store import Store
from ...cache.store.verifying import Damage
from ...stages.frozen_base.quantized import QuantizedBase
from ...stages.models.weights.file_checksum import is_whole
from ...stages.run_output.run_file import damage_of_run
from ...stages.samples.table import read_rejections
from ...stages.stage import Progress
from ...stages.stores.pins import Record, pairs_pin
from ...stages.stores.previewed import only_previewed
from ...stages.stores.row_kinds import RowKind
from ...stages.stores.run import Run
from .caches import Caches

MOST_NAMES = 20
DROPPING = "qedit verify --drop"
_ANEW = "The next `qedit train` writes it anew from the newest checkpoint."
# results in the folder of a run, and what becomes of a damaged one
RESULTS = {
    "*.safetensors": _ANEW,
    "ema/*.safetensors": _ANEW,
    "best/*.safetensors": "The next `qedit train` sets it aside, and keeps the best from then on.",
    "previews/step-*/*.safetensors": "The next `qedit train` makes those of the last step anew.",
}


@dataclass
class Verified:
    """The result of `verify`, in words: how much was read, and what of it is damaged."""

    parts: int = 0
    lines: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    dropped: bool = False
    base_users: list[str] = field(default_factory=list)

    def as_object(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "stage": "verify",
            "parts": self.parts,
            "damaged": self.lines,
            "samples": self.samples,
            "dropped": self.dropped,
            "base_users": self.base_users,
        }

    def needed_by(self) -> str:
        """Return a line on the samples that need what is damaged."""
        names = ", ".join(self.samples[:MOST_NAMES]) or "none of the present tables"
        more = len(self.samples) - MOST_NAMES
        also = f" and {more} more" if more > 0 else ""
        return f"Samples that need what is damaged: {names}{also}"

    def dropped_lines(self) -> Iterator[str]:
        """Yield what was dropped, and what that means for the runs that there are."""
        for line in self.lines:
            yield line if line in self.results else f"Dropped: {line}"
        if self.dropped:
            yield self.needed_by()
            yield (
                "No run was trained on damaged rows: training holds every row against its checksum "
                "as it reads it. Run `qedit run`: it makes what was dropped anew."
            )
            yield from self.trained_on_base()

    def trained_on_base(self) -> Iterator[str]:
        """Yield a line on the runs that a damaged quantised base may have been trained into."""
        if self.base_users:
            yield (
                f"Runs that use the damaged base: {', '.join(self.base_users)}. Training checks a "
                "base as it loads it; earlier versions did not, and what they trained since the "
                "damage is not what an undamaged base gives: train it again."
            )

    def refuse(self) -> None:
        """Raise Damaged if anything is."""
        if not self.lines:
            return
        raise Damaged(
            "\n".join([*self.lines, self.needed_by(), *self.trained_on_base()]),
            "Run `qedit verify --drop`, then `qedit run`: what is damaged is given up and made "
            "anew. Delete a damaged pairs table or checkpoint by hand. What a damaged record says "
            "is written anew by the caching stages of its run: delete it if there is no such run.",
        )


def verify(run: Run, progress: Progress, *, share: float = 1.0, drops: bool = False) -> Verified:
    """Read again what this configuration made: stores, frozen base, pairs tables, checkpoints.

    Stores of other recipes beside are read as well: who asks for their rows wants whole ones.

    Args:
        share: of the rows that are read.
        drops: whether to give up what is damaged in stores.

    Raises:
        Locked: rows are to be dropped while somebody writes.
    """
    verified, caches = Verified(), Caches(run)
    verified.lines += _pairs_tables(run)
    verified.lines += _checkpoints(Path(run.settings.output_dir))
    own, base = run.stores.all_stores(), run.quantized_base
    table = run.modulation_table
    every = [*own, *([table] if table is not None else [])]
    known = {store.path.resolve() for store in every}
    every += [
        store
        for store in caches.stores
        if store.path.resolve() not in known and store.layout is not RowKind.MODULATION.layout
    ]
    bases = [base] if base is not None and base.is_there() else []
    verified.lines += _records(caches)
    if verified.lines:
        drops = False  # which samples are affected is known from whole tables alone
    verified.results = list(_results(run.output_dir))
    verified.lines += verified.results
    verified.parts = sum(len(store.part_paths()) for store in every) + len(bases)
    damaged_stores: list[tuple[Store, list[Damage]]] = []
    with progress.bar(verified.parts, "verify", unit="part") as advance:
        for store in every:
            damages = store.verify(share=share, seen=advance) + _indices(store)
            if damages:
                damaged_stores.append((store, damages))
        spoilt = list(_bases(bases, verified, share=share, seen=advance))
    verified.base_users = [user for base in spoilt for user in _users(caches, base)]
    for store, damages in damaged_stores:
        verified.lines += _in_words(damages)
        if store in own:  # the rows of another recipe are no sample's of this run
            verified.samples += _samples(caches, store, damages)
    if drops and damaged_stores:
        with alone_in((one.path for one in every if one.path.is_dir()), doing=DROPPING):
            for store, damages in damaged_stores:
                drop(store, damages)
    for base in spoilt if drops else ():
        with writer_lock(base.path.parent, doing=DROPPING):
            remove(base.path)
    for store in every if drops else ():
        store.sweep()  # a `--drop` that was killed may have left what it was removing
    verified.samples = list(dict.fromkeys(verified.samples))
    verified.dropped = drops and bool(damaged_stores or spoilt)
    return verified


def _in_words(damages: Iterable[Damage]) -> Iterator[str]:
    """Yield what is damaged: one line for all rows of a part that are damaged alike."""
    alike: dict[tuple[Path, str], list[str | None]] = {}
    for damage in damages:
        alike.setdefault((damage.part, damage.what), []).append(damage.key)
    for (part, what), keys in alike.items():
        rows = [key for key in keys if key is not None]
        if len(rows) < len(keys):
            yield f"{part}: {what}"
        if rows:
            several = f"{len(rows)} rows of {part}, the first {rows[0]}"
            yield f"{several if len(rows) > 1 else f'row {rows[0]} of {part}'}: {what}"


def _bases(
    bases: list[QuantizedBase], verified: Verified, *, share: float, seen: Callable[[int], None]
) -> Iterator[QuantizedBase]:
    """Yield the bases that are damaged, and add their damages to `verified`."""
    for base in bases:
        damages = list(base.damages(share=share))
        verified.lines += damages
        if damages:
            yield base
        seen(1)


def _users(caches: Caches, base: QuantizedBase) -> list[str]:
    """Return the output_dir of this run, whose base this is, and of others that need it."""
    records = chain.from_iterable(caches.found_records.values())
    named = [one for one in records if isinstance(one, Record) and base.path.name in one.pins]
    return sorted({str(caches.run.output_dir), *(record.output_dir for record in named)})


def _indices(store: Store) -> list[Damage]:
    return [
        Damage(store.path, None, f"{path.name} does not match its checksum")
        for path in spoilt_indices(store.path, store=store.fingerprint)
    ]


def _samples(caches: Caches, store: Store, damages: list[Damage]) -> list[str]:
    """Return the names of the samples of which a row is damaged.

    Of a part whose table cannot be read, they are those that lack a row.
    """
    bad = {damage.key for damage in damages if damage.key}
    kind, run = RowKind.of(store.recipe), caches.run
    previewed = {
        one.sample.name: one.keys(kind, run.captions_beside).keys.to_pylist()
        for one in only_previewed(run)
    }
    if any(damage.key is None and damage.part != store.path for damage in damages):
        wanted = set(caches.wanted_keys(store, [pairs_pin(run)]).to_pylist())
        same = (each for each in run.stores.all_stores() if each.fingerprint == store.fingerprint)
        bad |= wanted.union(*previewed.values()).difference(*map(_listed, same))
    names = [name for name, keys in previewed.items() if not bad.isdisjoint(keys)]
    for table in run.every_pairs():
        keys = kind.keys_in(table, run.captions_beside)
        hit = pc.is_in(keys.keys, value_set=pa.array(sorted(bad), pa.string()))
        rows = keys.rows[hit.to_numpy(zero_copy_only=False).astype(bool)]
        names += [sample.name for sample in table.samples(rows)]
    return names


def _listed(store: Store) -> set[str]:
    """Return the keys in parts whose tables can be read."""
    keys: set[str] = set()
    for path in store.part_paths():
        try:
            listing = read_part(path, store.layout, store=store.fingerprint)
        except Broken:
            continue
        if listing is not None:
            keys.update(listing.rows["key"].to_pylist())
    return keys


def _pairs_tables(run: Run) -> Iterator[str]:
    for main in run.main_datasets:
        try:
            table = run.pairs(main)
            table.latents()
            read_rejections(table.path.parent)
        except Damaged as error:
            yield error.what


def _records(caches: Caches) -> Iterator[str]:
    """Yield what is wrong with records of what runs need."""
    for found in chain.from_iterable(caches.found_records.values()):
        if isinstance(found, Damaged):
            yield found.what


def _results(output_dir: Path) -> Iterator[str]:
    """Yield what is wrong with the run's record, its LoRAs and the latents of its previews."""
    if damage := damage_of_run(output_dir):
        yield f"{damage} The next `qedit train` writes it anew."
    for pattern, what in RESULTS.items():
        for path in sorted(output_dir.glob(pattern)):
            if not is_whole(path):
                yield f"{path} is not as it was written. {what}"


def _checkpoints(output_dir: Path) -> Iterator[str]:
    """Yield what is wrong with files of checkpoints, judged by their state.json."""
    for state in sorted(output_dir.glob("checkpoint-*/state.json")):
        try:
            files = read_sealed(state)["files"]
        except (KeyError, Broken):
            yield f"{state} cannot be read"
            continue
        for name, digest in files.items():
            path = state.parent / name
            if not has_digest(path, digest):
                yield f"{path} is not as it was written"
