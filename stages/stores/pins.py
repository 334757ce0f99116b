"""Records of what each run needs: one sealed file for each run in every folder that holds stores.

    <folder>/runs/<id>.json   names the stores in <folder> that the run needs, and its pairs tables

Several runs may share a folder. What a run no longer wants is kept there as long as the record of
another one names it: records are the roots from which `gc` finds what is live. A record is written
under the folder's lock, before a stage fills a store there. It says in which folder it was
written: where that was moved or copied, its paths are looked for under the new place as well
(`moves.py`). A run is known by its output_dir and, where that was moved, by its random id.

Fields that a reader does not know are left alone. Earlier versions left a note in every store
instead (`<store>/uses/<id>.json`); those are read, and go when their run writes its record.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...cache.errors import Broken, Damaged
from ...cache.files.atomic import remove, sweep, write_json
from ...cache.files.claims import LOCK_PATIENCE_SECONDS
from ...cache.files.fingerprint import key_of
from ...cache.files.lock import writer_lock
from ...cache.files.sealed import read_sealed, sealed
from ...cache.store.recipe_file import keep_recipe
from ...cache.store.store import Store
from ..samples.table import MANIFEST, table_folder
from .moves import Move, keep_id, written_id
from .previewed import keys_only_previewed
from .run import Run

RUNS, OLD_NOTES = "runs", "uses"
FORMAT = 1
PINNING = "recording what a run needs"


@dataclass(frozen=True)
class Pin:
    """The need of a run of one store; of a frozen base it needs all, and names no tables.

    Attributes:
        pairs: folders of pairs tables.
        tables: the names of its tables in them. None: every table there counts.
        captions_beside: captions that every sample gets besides its own.
        extra_keys: keys that are in no table: whole references that previews show.
    """

    pairs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    captions_beside: tuple[str, ...] = ()
    extra_keys: tuple[str, ...] = ()

    def tables_gone(self) -> list[str]:
        """Return the tables, and the folders of tables, that are not there."""
        folders = [folder for folder in self.pairs if not Path(folder).is_dir()]
        return folders + [
            name
            for name in self.tables
            if not any(Path(folder, name, MANIFEST).is_file() for folder in self.pairs)
        ]


@dataclass(frozen=True)
class Record:
    """The file at `path`: what the run in `output_dir` needs in one folder, by name.

    Attributes:
        run_id: the random id of the run; "" in records of earlier versions.
        recorded_dir: the `output_dir` when it was written.
        move: of the folder since. To be written again where there was one.
        is_copy: the folder was copied: the record is still in the former one, too.
    """

    path: Path
    output_dir: str
    pins: Mapping[str, Pin]
    run_id: str
    recorded_dir: str
    move: Move
    is_copy: bool

    @property
    def is_moved(self) -> bool:
        return self.move.old != self.move.new

    def is_of(self, run: Run) -> bool:
        """Return whether `run` wrote it: in its output_dir, or in one that was moved there."""
        if str(run.output_dir) in (self.recorded_dir, self.move.path(self.recorded_dir)):
            return True
        there = written_id(Path(self.recorded_dir))[0]
        return bool(self.run_id) and there != self.run_id == run.id

    def says(self, run: Run, pins: Mapping[str, Pin]) -> bool:
        """Return whether it says what `run` would write of these `pins` where it lies."""
        return self.pins == pins and not self.is_moved and self.recorded_dir == str(run.output_dir)


def pin_of(run: Run) -> Pin:
    """Return what the run needs of every store of rows with its present settings.

    Raises:
        NotComplete: it previews whole references, and there are no pairs yet.
    """
    return replace(pairs_pin(run), extra_keys=keys_only_previewed(run))


def pairs_pin(run: Run) -> Pin:
    """Return what the run needs of its folders of pairs tables; no table need be there."""
    folders = {str(run.configuration.pairs_folder(main).resolve()) for main in run.main_datasets}
    tables = {table_folder(run.configuration, main, run.flavour) for main in run.main_datasets}
    return Pin(
        pairs=tuple(sorted(folders)),
        tables=tuple(sorted(table.name for table in tables)),
        captions_beside=run.captions_beside,
    )


def pin_before_writing(run: Run, stores: Iterable[Store], pin: Pin | None = None) -> bool:
    """Record that the run needs these stores, and begin those that are not there.

    `gc` of another run holds the folder's lock: it has removed what it may, or finds the record.
    Return whether all of it was recorded before, so that `gc` can have removed nothing.

    Args:
        pin: what the run needs of them; None: what it needs of every store of rows.

    Raises:
        Locked: `gc` is at work there.
        AnotherRecipe: the folder of a store was made by another recipe.
    """
    begun = {store.path: store for store in stores}
    pin, patience = pin or pin_of(run), LOCK_PATIENCE_SECONDS
    recorded = pin_places(run, begun, pin, begins=begun, patience_seconds=patience)
    for store in begun.values() if not recorded else ():
        store.refresh()  # `gc` may have removed rows that were seen before
    return recorded


def pin_existing(run: Run, stores: Iterable[Store]) -> bool:
    """Do the same with those of these stores that are there; return and raise the same.

    This comes before the stage looks what they lack: a run that finds all rows made by others
    keeps them, too. Before `pair` has run, a record would name tables that are not there.
    """
    there, pin = [store for store in stores if store.path.is_dir()], pin_of(run)
    return not pin.tables_gone() and pin_before_writing(run, there, pin)


def pin_places(
    run: Run,
    places: Iterable[Path],
    pin: Pin,
    *,
    begins: Mapping[Path, Store] | None = None,
    patience_seconds: float = 0.0,
) -> bool:
    """Record that the run needs those of these places that are there, or that it begins.

    Args:
        places: stores, bases or folders of pairs tables.

    Raises:
        Locked: somebody is at work in their folder.
    """
    begins, recorded = begins or {}, True
    by_folder: dict[Path, list[str]] = defaultdict(list)
    for place in places:
        if place in begins or place.is_dir():
            by_folder[place.parent].append(place.name)
    for folder, names in by_folder.items():
        if _is_recorded(run, folder, names, pin):
            continue
        recorded = False
        with writer_lock(folder, doing=PINNING, patience_seconds=patience_seconds):
            for path in begins.keys() & {folder / name for name in names}:
                keep_recipe(path, begins[path].recipe)
            write_pins(run, folder, names, pin)
    return recorded


def write_pins(run: Run, folder: Path, names: Sequence[str], pin: Pin) -> None:
    """Record that the run needs what is called so in `folder`, whose lock the caller holds.

    What else it needs there stays recorded.
    """
    own = [found for found in read_records(folder) if not isinstance(found, Damaged)]
    own = [record for record in own if record.is_of(run)]
    # what it wrote before it was moved counts less
    own.sort(key=lambda record: record.path == record_file(run, folder))
    before = {
        name: kept
        for record in own
        for name, kept in record.pins.items()
        if (folder / name).is_dir()
    }
    renew_record(run, folder, own, before | dict.fromkeys(names, pin))
    for name in names:  # an old note that cannot be read
        remove(folder / name / OLD_NOTES / record_file(run, folder).name)


def renew_record(run: Run, folder: Path, own: Sequence[Record], pins: Mapping[str, Pin]) -> None:
    """Have one record say what the run needs in `folder`, whose lock the caller holds.

    Args:
        own: the records of the run there, old notes included; one takes the place of all.
        pins: what it needs; if nothing, no record is left.
    """
    file = record_file(run, folder)
    if pins and not any(record.path == file and record.says(run, pins) for record in own):
        sweep(file.parent)
        keep_id(run.output_dir, run_id(run))
        record = {
            "format": FORMAT,
            "id": run_id(run),
            "output_dir": str(run.output_dir),
            "folder": str(folder.resolve()),
            "pins": {name: asdict(pin) for name, pin in sorted(pins.items())},
        }
        write_json(file, sealed(record))
    for path in {record.path for record in own} - ({file} if pins else set()):
        remove(path)


def run_id(run: Run) -> str:
    """Return the id that the run has or, if it has none of its own, a new one for it."""
    if not run.id:
        paired = _own_record(run, run.pairs_root)
        run.id = (paired.run_id if paired else "") or secrets.token_hex(8)
    return run.id


def record_file(run: Run, folder: Path) -> Path:
    """Return where the record of the run in `folder` lies: one for each output_dir."""
    return folder / RUNS / f"{key_of([str(run.output_dir)])[:16]}.json"


def read_records(folder: Path) -> Iterator[Record | Damaged]:
    """Yield every record of `folder`, old notes in its stores included.

    One that cannot be read is yielded as the error that says so.
    """
    for place in (folder / RUNS, *sorted(folder.glob(f"*/{OLD_NOTES}"))):
        for path in sorted(place.glob("*.json")):
            try:
                record = _read(path, folder)
            except Damaged as error:
                if not is_foreign(path):
                    yield error
                continue
            if record is not None:
                yield record


def is_foreign(path: Path) -> bool:
    """Return whether something in the folder of records is none: it decides nothing."""
    return not path.is_file() or not re.fullmatch(r"[0-9a-f]{16}\.json", path.name)


def _own_record(run: Run, folder: Path) -> Record | None:
    try:
        return _read(record_file(run, folder), folder)
    except Damaged:
        return None


def _is_recorded(run: Run, folder: Path, names: Sequence[str], pin: Pin) -> bool:
    record, file = _own_record(run, folder), record_file(run, folder).name
    if record is None or record.is_moved:
        return False
    return all(
        record.pins.get(name) == pin
        and (folder / name).is_dir()
        and not (folder / name / OLD_NOTES / file).exists()
        for name in names
    )


def _read(path: Path, folder: Path) -> Record | None:
    """Read a record in `folder`, or an old note in a store there; None: there is none.

    Raises:
        Damaged: what the run needs is unknown.
    """
    try:
        found, place = read_sealed(path), folder
        if path.parent.name == OLD_NOTES:
            place = path.parent.parent
            found = _of_old_note(found, place)
        elif found["format"] != FORMAT:
            raise Broken(f"it has format {found['format']}, this qedit reads {FORMAT}")
        move = Move.between(found.get("folder"), place.resolve())
        (recorded,) = _texts([found["output_dir"]])
        moved = move.path(recorded)
        is_copy = Path(found.get("folder") or place, path.relative_to(place)).is_file()
        is_gone = not Path(recorded).is_dir() and (is_copy or not Path(recorded).parent.is_dir())
        return Record(
            path,
            moved if is_gone or Path(moved).is_dir() else recorded,
            {name: _pin(pin, move) for name, pin in found["pins"].items()},
            str(found.get("id", "")),
            recorded,
            move,
            is_copy,
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, Broken) as error:
        raise Damaged(
            f"{path} records what a run needs of these caches, and it cannot be read: {error}.",
            "Run the caching stages of that run again: they write it anew. If there is no such "
            "run any more, delete that file.",
        ) from error


def _of_old_note(note: Mapping[str, Any], store: Path) -> dict[str, Any]:
    """Return a note of an earlier version in the form of a record; the oldest lack fields."""
    pin = {name: note[name] for name in ("pairs", "captions_beside")}
    pin |= {"tables": note.get("tables", []), "extra_keys": note.get("also", [])}
    pins = {store.name: pin}
    return {"output_dir": note["output_dir"], "folder": note.get("store"), "pins": pins}


def _pin(found: Mapping[str, Any], move: Move) -> Pin:
    pin = Pin(**{field.name: _texts(found[field.name]) for field in fields(Pin)})
    # both may be there: then nothing that either place names goes
    places = dict.fromkeys(place for path in pin.pairs for place in (path, move.path(path)))
    there = tuple(place for place in places if Path(place).is_dir())
    return replace(pin, pairs=there or pin.pairs)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(value)
