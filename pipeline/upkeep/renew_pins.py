"""The notes of a run said anew when `gc` of it takes its former tables away."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ...cache.files.atomic import remove
from ...config.configuration import Configuration
from ...stages.models.checkpoint.checkpoint import Checkpoint
from ...stages.stores.pins import Kept, note_file, note_use, use_of
from ...stages.stores.run_stores import open_stores
from .other_runs import own_notes
from .unused_bases import bases_in, needed_bases, tables_in
from .unused_rows import needed_fingerprints, previewed_keys, stores_beside


def renew_notes(
    configuration: Configuration, checkpoint: Checkpoint, *, held: Collection[Path]
) -> None:
    """Have the notes of this run say what it wants now, and only where it wants anything.

    Its former tables may go now, and a note that names what is gone is in other runs' way.

    Args:
        held: the folders that are locked; who makes another one meanwhile has noted what it wants.
    """
    settings, stores = configuration.settings, open_stores(configuration, checkpoint)
    rows = [one for one in stores_beside(stores) if one.path.resolve() in held]
    needed = needed_fingerprints(configuration, stores)
    also = previewed_keys(configuration, checkpoint, stores)
    _renew(rows, needed, configuration, also=also)
    every: list[Kept] = [*tables_in(settings), *bases_in(settings)]
    bases = [one for one in every if one.path.resolve() in held]
    _renew(bases, needed_bases(configuration, checkpoint), configuration)


def _renew(
    places: Sequence[Kept],
    needed: Collection[str],
    configuration: Configuration,
    *,
    also: tuple[str, ...] = (),
) -> None:
    """Have what the run noted in these said anew where their names are needed, else removed."""
    own = use_of(configuration)
    for place in places:
        notes = own_notes(place, own)
        keeps = bool(notes) and place.path.name in needed
        if keeps:
            note_use([place], configuration, also=also)
        for note in notes:
            if not keeps or note != note_file(place, own):
                remove(note)
