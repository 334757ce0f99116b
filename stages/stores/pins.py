"""Who uses a store: notes in it that name the pairs tables whose rows it holds.

Several runs may share a cache folder. Each leaves a note, so that what one of them no longer
wants is kept as long as another one's tables name it. A note says which store it was left in: in
a copy of that store it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...cache.errors import Broken, Damaged
from ...cache.files.atomic import sweep, write_json
from ...cache.files.claims import LOCK_PATIENCE_SECONDS
from ...cache.files.failing_disk import bytes_of
from ...cache.files.fingerprint import key_of
from ...cache.files.lock import writer_lock
from ...cache.files.sealed import sealed, unsealed
from ...cache.store.recipe_file import keep_recipe
from ...cache.store.store import Store
from ...config.configuration import Configuration
from ..models.checkpoint.checkpoint import flavour_of
from ..samples.table import MANIFEST, captions_beside, table_folder, used_main_datasets

USES = "uses"
NOTING = "noting who uses it"
LISTS = ("pairs", "captions_beside", "tables", "also")


@runtime_checkable
class Kept(Protocol):
    """A store, or anything else that a folder in the caches holds."""

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class PairsPlace:
    """A folder of pairs tables, in which `pair` leaves a note."""

    path: Path


@dataclass(frozen=True)
class Use:
    """A run's claim to rows: pairs tables, and captions that go with every pair.

    Attributes:
        pairs: folders of pairs tables.
        tables: the names of its tables in them; none: of a note that tells of no names, so that
            every table there counts.
        also: keys that are in no table: of whole references, where training crops them and
            previews do not.
    """

    pairs: tuple[str, ...]
    output_dir: str
    captions_beside: tuple[str, ...]
    tables: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """One note for each run, which is its output_dir; the rest is what it used last."""
        return key_of([self.output_dir])[:16]


def use_of(configuration: Configuration, *, also: tuple[str, ...] = ()) -> Use:
    """What a run with this configuration says of itself."""
    mains = used_main_datasets(configuration)
    folders = sorted({str(configuration.pairs_folder(main).resolve()) for main in mains})
    flavour = flavour_of(configuration.settings)
    return Use(
        pairs=tuple(folders),
        output_dir=str(Path(configuration.settings.output_dir).resolve()),
        captions_beside=captions_beside(configuration.settings),
        tables=tuple(sorted({table_folder(configuration, main, flavour).name for main in mains})),
        also=also,
    )


def begin_use(
    stores: Iterable[Store], configuration: Configuration, *, also: tuple[str, ...] = ()
) -> None:
    """Begin these stores with the run's note in each, before rows are made.

    It is written under the lock: `gc` of another run has read all notes and has removed what it
    may, or finds this one.

    Raises:
        Locked: somebody removes rows there.
        AnotherRecipe: the folder of a store was made by another recipe.
    """
    use = use_of(configuration, also=also)
    for store in stores:
        if _is_noted(store, use):
            continue
        with writer_lock(store.path, doing=NOTING, patience_seconds=LOCK_PATIENCE_SECONDS):
            keep_recipe(store.path, store.recipe)
            _note(store, use)
        store.refresh()  # of what was seen before, `gc` may have removed something


def keep_use(
    stores: Iterable[Store], configuration: Configuration, *, also: tuple[str, ...] = ()
) -> None:
    """Have the run's note in those stores that are there, before it is seen what they lack.

    A run that finds all its rows made by others keeps them, too. Raises as `begin_use` does.
    Before `pair` has run there is nothing to keep, and a note would be in others' way.
    """
    if tables_gone(use_of(configuration)):
        return
    there = (store for store in stores if store.path.is_dir())
    begin_use(there, configuration, also=also)


def keep_pairs(configuration: Configuration, *, lock: Path) -> None:
    """The same beside its pairs tables, which nothing else names before rows are made.

    Raises:
        Locked: somebody is at work there.
    """
    keep_places(pairs_places(configuration), configuration, lock=lock)


def keep_places(
    places: Sequence[Kept],
    configuration: Configuration,
    *,
    lock: Path,
    patience_seconds: float = 0.0,
) -> None:
    """Have the run's note in those of these folders that are there.

    Args:
        lock: the folder that who removes one of them has locked.

    Raises:
        Locked: somebody is at work there.
    """
    use = use_of(configuration)
    if all(_is_noted(place, use) for place in places if place.path.is_dir()):
        return
    with writer_lock(lock, doing=NOTING, patience_seconds=patience_seconds):
        note_use(places, configuration)


def pairs_places(configuration: Configuration) -> list[PairsPlace]:
    """Where the pairs tables of the run lie."""
    mains = used_main_datasets(configuration)
    return [PairsPlace(configuration.pairs_folder(main)) for main in mains]


def note_use(
    stores: Sequence[Kept], configuration: Configuration, *, also: tuple[str, ...] = ()
) -> None:
    """Leave the run's note in each of these stores, if it is not there already."""
    use = use_of(configuration, also=also)
    for store in stores:
        if store.path.is_dir():
            _note(store, use)


def note_in(folder: Path, store: Kept, configuration: Configuration) -> None:
    """Leave the run's note in a folder that is about to take the place of `store`.

    So it is there with the note or not at all.
    """
    use = use_of(configuration)
    path = folder / note_file(store, use).relative_to(store.path)
    _write(path, use, place=_place(store, folder=folder))


def note_file(store: Kept, use: Use) -> Path:
    """Where the note of a run lies in a store."""
    return store.path / USES / f"{use.name}.json"


def notes_in(store: Kept) -> list[Path]:
    """The files of all notes in a store."""
    folder = store.path / USES
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _note(store: Kept, use: Use) -> None:
    if not _is_noted(store, use):
        _write(note_file(store, use), use, place=_place(store))


def _write(path: Path, use: Use, *, place: Mapping[str, str | int]) -> None:
    said = {**asdict(use), **place}
    sweep(path.parent)
    write_json(path, sealed(said))


def _is_noted(store: Kept, use: Use) -> bool:
    try:
        return read_note(note_file(store, use), store) == use
    except Damaged:
        return False


def read_note(path: Path, store: Kept) -> Use | None:
    """What a note says; None if there is none, or if it was left in another store.

    Raises:
        Damaged: nobody knows what it keeps.
    """
    place = _place(store)
    try:
        said = unsealed(json.loads(bytes_of(path)))
        use = _use_in(said)
        # a moved store keeps its inode, another mount of it its path; a copy has neither, and nor
        # has what was moved to another disk: then nothing is left where it lay
        is_of_this_store = any(
            said.get(name, value) == value for name, value in place.items()
        ) or not _is_there(said)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, Broken) as error:
        raise Damaged(
            f"{path} names what another run uses of these caches, and it cannot be read: {error}.",
            "Run the caching stages of that run once more: they write it anew. If there is no such "
            "run any more, delete that file.",
        ) from error
    return use if is_of_this_store else None


def _use_in(said: Mapping[str, Any]) -> Use:
    """What the fields of a note say."""
    # notes of earlier versions lack these
    lists = {"tables": [], "also": []} | {name: said[name] for name in said if name in LISTS}
    texts = [said["output_dir"], *chain.from_iterable(lists.values())]
    if not all(isinstance(one, list) for one in lists.values()) or not all(
        isinstance(one, str) for one in texts
    ):
        raise TypeError("its fields are not those of a note")
    return Use(output_dir=said["output_dir"], **{name: tuple(one) for name, one in lists.items()})


def tables_gone(use: Use) -> list[str]:
    """What of its pairs tables, and of their folders, is not there."""
    folders = [folder for folder in use.pairs if not Path(folder).is_dir()]
    return folders + [
        name
        for name in use.tables
        if not any(Path(folder, name, MANIFEST).is_file() for folder in use.pairs)
    ]


def _is_there(said: Mapping[str, Any]) -> bool:
    """Whether the store that a note names still lies where it was left."""
    try:
        return bool(Path(said["store"]).stat().st_ino == said["inode"])
    except OSError:
        return False


def _place(store: Kept, *, folder: Path | None = None) -> dict[str, str | int]:
    """Where a store lies, and what its file system calls it: `folder`, until that takes its place.

    A folder keeps its inode when it gets another name.
    """
    where = store.path.resolve()
    named = folder or where
    return {"store": str(where), "inode": named.stat().st_ino if named.is_dir() else 0}
