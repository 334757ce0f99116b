"""An index: the tables of many parts in one file, so that a store opens quickly.

It is derived and never the truth. It speaks of parts by their names, which are never used
again, and a complete part never changes: so it is right about every part that is still
there, and silent about the others. A store without one, or with a spoilt one, opens slowly.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ..errors import Broken
from ..files.atomic import remove, write_bytes
from ..files.checksum import crc32c
from ..files.failing_disk import bytes_of
from ..regular_file import json_in
from .grid import grid_in
from .listing import Listing, checked_listing
from .tables import table_bytes, table_in

FORMAT = b"1"
NAME = re.compile(r"index-([0-9a-f]{8})\.parquet")


def write_index(folder: Path, listing: Listing, *, store: str) -> Path:
    """Write an index of `listing` into `folder`; its name is its checksum."""
    parts = [
        [name, int(count), grid.as_json()]
        for name, count, grid in zip(listing.names, listing.counts, listing.grids, strict=True)
    ]
    about = {"format": FORMAT, "store": store.encode(), "parts": json.dumps(parts).encode()}
    data = table_bytes(listing.rows.replace_schema_metadata(about), repeats=False)
    path = folder / f"index-{crc32c(data):08x}.parquet"
    write_bytes(path, data)
    return path


def indices_in(folder: Path) -> list[Path]:
    """Return the indices of the store at `folder`; two writers at once may leave more than one."""
    return sorted(path for path in _files(folder) if NAME.fullmatch(path.name))


def read_index(path: Path, *, store: str) -> Listing | None:
    """Return the listing in the index at `path`; None if the file is damaged or gone."""
    try:
        data = bytes_of(path)
    except (FileNotFoundError, Broken):  # not there: another writer has put a larger one there
        return None
    named = NAME.fullmatch(path.name)
    if named is None or int(named[1], 16) != crc32c(data):
        return None
    try:
        table = table_in(data)
        about = table.schema.metadata
        if about[b"format"] != FORMAT or about[b"store"].decode() != store:
            return None
        names, counts, grids = zip(*json_in(about[b"parts"]), strict=True)
        rows = table.replace_schema_metadata(None)
        return checked_listing(names, [grid_in(grid) for grid in grids], counts, rows)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, Broken):
        return None


def spoilt_indices(folder: Path, *, store: str) -> list[Path]:
    """Return the damaged indices: they do no harm, but the store opens more slowly."""
    spoilt = (path for path in indices_in(folder) if read_index(path, store=store) is None)
    return [path for path in spoilt if path.exists()]  # else another has just taken its place


def replace_indices(folder: Path, listing: Listing, *, store: str) -> None:
    """Write an index of `listing` and remove the others."""
    former = indices_in(folder)
    new = write_index(folder, listing, store=store)
    for path in former:
        if path != new:
            remove(path)


def _files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from folder.iterdir()
