"""Records of what each run needs: one sealed file for each run in every folder that holds stores.

    <folder>/runs/<id>.json   names the stores in <folder> that the run needs, and its pairs tables

Several runs may share a folder. What a run no longer wants is kept there as long as the record of
another one names it: records are the roots from which `gc` finds what is live. A record is written
under the folder's lock, before a stage fills a store there. It says in which folder it was
written: in a copy of that folder it counts for nothing; in a moved one its paths moved as well.

Fields that a reader does not know are left alone. Earlier versions left a note in every store
instead (`<store>/uses/<id>.json`); those are read, and go when their run writes its record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        is_moved: it was written where the folder lay before. To be written again: once something
            lies at that place, this folder would pass for a copy of it.
    """

    path: Path
    output_dir: str
    pins: Mapping[str, Pin]
    is_moved: bool = False


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

    What else it needs there stays recorded. Its old notes in these go.
    """
    record, file = _own_record(run, folder), record_file(run, folder)
    before = record.pins if record else {}
    kept = {name: one for name, one in before.items() if (folder / name).is_dir()}
    pins = kept | dict.fromkeys(names, pin)
    if record != Record(file, str(run.output_dir), pins):
        write_record(run, folder, pins)
    notes = [folder / name / OLD_NOTES for name in names]
    own = {place / file.name for place in notes}  # read or not: one may be damaged, or a copy
    own |= {
        found.path
        for found in read_records(folder, notes)
        if isinstance(found, Record) and found.output_dir == str(run.output_dir)
    }
    for path in own:
        remove(path)


def write_record(run: Run, folder: Path, pins: Mapping[str, Pin]) -> None:
    """Write what the run needs in `folder`, whose lock the caller holds, and nothing else."""
    path, place = record_file(run, folder), folder.resolve()
    sweep(path.parent)
    record = {
        "format": FORMAT,
        "output_dir": str(run.output_dir),
        "folder": str(place),
        "inode": place.stat().st_ino,
        "pins": {name: asdict(pin) for name, pin in sorted(pins.items())},
    }
    write_json(path, sealed(record))


def record_file(run: Run, folder: Path) -> Path:
    """Return where the record of the run in `folder` lies: one for each output_dir."""
    return folder / RUNS / f"{key_of([str(run.output_dir)])[:16]}.json"


def read_records(folder: Path, places: Iterable[Path] | None = None) -> Iterator[Record | Damaged]:
    """Yield every record of `folder`, old notes in its stores included; copies are left out.

    One that cannot be read is yielded as the error that says so.

    Args:
        places: the folders of files to read; None: all.
    """
    for place in places or (folder / RUNS, *sorted(folder.glob(f"*/{OLD_NOTES}"))):
        for path in sorted(place.glob("*.json")):
            try:
                record = _read(path, folder)
            except Damaged as error:
                yield error
                continue
            if record is not None:
                yield record


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
    """Read a record in `folder`, or an old note in a store there; None: none, or a copy.

    Raises:
        Damaged: what the run needs is unknown.
    """
    try:
        found = read_sealed(path)
        place = folder
        if path.parent.name == OLD_NOTES:
            place = path.parent.parent
            found = _of_old_note(found, place)
        elif found["format"] != FORMAT:
            raise Broken(f"it has format {found['format']}, this qedit reads {FORMAT}")
        move = _move(found.get("folder"), found.get("inode"), place)
        if move is None:
            return None
        (output_dir,) = _texts([found["output_dir"]])
        if not Path(output_dir).parent.is_dir():
            output_dir = move(output_dir)
        pins = {name: _pin(pin, move) for name, pin in found["pins"].items()}
        return Record(path, output_dir, pins, found.get("folder") != str(place.resolve()))
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
    place = {"folder": note.get("store"), "inode": note.get("inode")}
    return {"output_dir": note["output_dir"], **place, "pins": {store.name: pin}}


def _pin(found: Mapping[str, Any], move: Callable[[str], str]) -> Pin:
    pin = Pin(**{field.name: _texts(found[field.name]) for field in fields(Pin)})
    # both may be there: then nothing that either place names goes
    places = dict.fromkeys(place for path in pin.pairs for place in (path, move(path)))
    there = tuple(place for place in places if Path(place).is_dir())
    return replace(pin, pairs=there or pin.pairs)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(value)


def _move(former: str | None, inode: int | None, place: Path) -> Callable[[str], str] | None:
    """Return what makes paths of the `former` place paths of today; None: `place` is a copy of it.

    A moved folder keeps its inode, and another mount of it its path. A copy has neither, and nor
    has what was moved to another disk: then nothing is left at the former place.
    """
    here = place.resolve()
    if former is None or former == str(here):
        return lambda path: path
    try:
        is_there = Path(former).stat().st_ino == inode
    except OSError:
        is_there = False
    if is_there:
        return (lambda path: path) if here.stat().st_ino == inode else None
    old, new = Path(former), here
    while old.name == new.name and old != old.parent and new != new.parent:
        old, new = old.parent, new.parent

    def moved(path: str) -> str:
        return str(new / Path(path).relative_to(old)) if Path(path).is_relative_to(old) else path

    return moved
