"""Who else uses a store: what the notes in it say, of this run and of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ...cache.errors import NotComplete
from ...config.configuration import Configuration
from ...stages.stores.pins import (
    Kept,
    Use,
    note_file,
    notes_in,
    pairs_places,
    read_note,
    tables_gone,
    use_of,
)


def uses_of(store: Kept, *, apart_from: Use | None = None) -> list[Use]:
    """What the notes say that were left in this very store.

    Args:
        apart_from: a run whose own notes do not count.

    Raises:
        Damaged: one cannot be read, so that nobody knows what it keeps.
    """
    return [use for _, use in _noted(store, apart_from)]


def _noted(store: Kept, apart_from: Use | None) -> Iterator[tuple[Path, Use]]:
    own = apart_from and note_file(store, apart_from)
    for path in notes_in(store):
        if path == own or (use := read_note(path, store)) is None:
            continue
        # notes of earlier versions have another name for every choice of datasets
        if apart_from is None or use.output_dir != apart_from.output_dir:
            yield path, use


def others_of(store: Kept, own: Use) -> list[Use]:
    """What other runs than `own` want of a store: what none of them names may go.

    Raises:
        Damaged: nobody knows what one of them wants.
        NotComplete: the tables that would tell it are gone.
    """
    return others_in([store], own)


def others_in(stores: Iterable[Kept], own: Use) -> list[Use]:
    """The same of several stores, each use once; who is refused is told of every note in the way.

    Raises:
        Damaged, NotComplete: as `others_of` does.
    """
    notes: dict[Use, list[Path]] = {}
    for store in stores:
        for path, use in _noted(store, own):
            notes.setdefault(use, []).append(path)
    gone = {use: tables for use in notes if (tables := tables_gone(use))}
    if gone:
        use, tables = next(iter(gone.items()))
        same = (notes[one] for one in gone if one.output_dir == use.output_dir)
        _refuse_without_tables(use, tables, notes=[note for some in same for note in some])
    return list(notes)


def own_notes(store: Kept, own: Use) -> list[Path]:
    """The files of the notes that a run has left in a store; those of earlier versions come last.

    Raises:
        Damaged: nobody knows whose one of them is.
    """
    first = note_file(store, own)
    others = [path for path in notes_in(store) if path != first]
    former = [
        path
        for path in others
        if (use := read_note(path, store)) is not None and use.output_dir == own.output_dir
    ]
    return [first, *former] if first.is_file() else former


def paired_by_others(configuration: Configuration) -> list[Use]:
    """What the tables beside those of this run name, of other runs.

    A note beside a table that has gone is in nobody's way.

    Raises:
        Damaged: nobody knows what one of them wants.
    """
    own = use_of(configuration)
    found = (use for place in pairs_places(configuration) for use in uses_of(place, apart_from=own))
    return list(dict.fromkeys(found))


def _refuse_without_tables(use: Use, gone: Sequence[str], *, notes: Sequence[Path]) -> NoReturn:
    """Raise because pairs tables that `use` names cannot be asked which rows it wants."""
    where = ", ".join(map(str, notes))
    raise NotComplete(
        f"The run in {use.output_dir} uses these caches, as {where} says, but its pairs tables "
        f"are gone: {', '.join(gone)}. Which rows it wants, nobody can tell.",
        "If they lie on a disk that is not mounted, mount it. Else run the stage pair of that "
        f"run again or, if there is no such run any more, delete {where}.",
    )
