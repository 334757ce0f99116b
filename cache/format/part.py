"""A part: rows written together, there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import Broken
from ..files.atomic import LEFTOVER, file_in_place, new_file, readable_json, sync_folder
from ..files.checksum import crc32c
from ..files.failing_disk import bytes_of
from .arrays import Bits, write_array
from .grid import Grid, chunk_length, place, zarr_metadata
from .listing import ROWS_SCHEMA, Listing, Row, checked_listing
from .manifest import MANIFEST_FILE, Manifest, manifest_text, read_manifest
from .open_files import OpenFiles
from .reading import KEPT_OPEN, ArrayReader
from .tables import table_bytes, table_in

ROWS_FILE = "rows.parquet"
ATTRIBUTES = {"qedit_dtype": "bfloat16"}


@dataclass(frozen=True)
class Layout:
    """The form of the rows of a store.

    Args:
        array: the name of the array they lie in.
        dimension_names: of that array.
        ragged: whether rows differ in length along the first dimension. If not, the first
            dimension counts rows, and the rows of a part have one shape.
    """

    array: str
    dimension_names: tuple[str, ...]
    ragged: bool


class Part:
    """A complete part whose rows can be read."""

    def __init__(
        self, path: Path, layout: Layout, grid: Grid, *, files: OpenFiles = KEPT_OPEN
    ) -> None:
        self.path, self.layout = path, layout
        self._array = ArrayReader(path / layout.array, grid, files=files)
        self._ragged, self._rest = layout.ragged, grid.shape[1:]

    def read(self, row: Row, *, into: Bits | None = None) -> Bits:
        """Return the row's bits (uint16): `[length, ...]` if rows are ragged, else `[...]`.

        Args:
            into: a contiguous array of the row's shape to read into.

        Raises:
            Broken: the row is not what was written.
        """
        start, length, checksum = row
        shape = (length, *self._rest) if self._ragged else self._rest
        if into is None:
            into = np.empty(shape, "<u2")
        elif into.shape != shape:
            raise ValueError(f"a row of shape {shape} cannot be read into one of {into.shape}")
        try:
            space = np.frombuffer(into, np.uint8)
        except ValueError:
            raise ValueError("a row cannot be read into what is not contiguous") from None
        self._array.read_into(space, start, length, checksum=checksum)
        return into

    def check(self, row: Row, space: npt.NDArray[np.uint8] | None = None) -> None:
        """Make sure that the row can be read as it was written; raise Broken otherwise.

        Args:
            space: at least of some hundred bytes, to read into.
        """
        self._array.check(row.start, row.length, checksum=row.checksum, space=space)

    def shape(self, row: Row) -> tuple[int, ...]:
        """Return the row's shape without reading it."""
        return (row.length, *self._rest) if self._ragged else self._rest


def write_part(
    path: Path,
    layout: Layout,
    *,
    store: str,
    keys: Sequence[str],
    rows: Sequence[Bits],
    packs: bool = False,
) -> None:
    """Write these rows as a new part at `path`; it exists once its manifest does.

    The manifest's file is begun before all others, under the name of a leftover: a part that
    has neither it nor the manifest is not unfinished, but has lost its manifest.

    Args:
        packs: whether to compress it, without a loss.
    """
    slabs = [row if layout.ragged else row[None] for row in rows]
    lengths = [len(slab) for slab in slabs]
    chunk = chunk_length(lengths) if layout.ragged else 1
    grid, starts = place(lengths, slabs[0].shape[1:], chunk=chunk, compressed=packs)
    described = {"attributes": ATTRIBUTES, "dimension_names": list(layout.dimension_names)}
    zarr_json = readable_json({**zarr_metadata(grid), **described}).encode()
    with new_file(path / MANIFEST_FILE) as file:
        array = path / layout.array
        checksums = write_array(array, grid, starts=starts, rows=slabs, zarr_json=zarr_json)
        table = table_bytes(_rows_table(keys, starts, lengths=lengths, checksums=checksums))
        with file_in_place(path / ROWS_FILE) as rows_file:
            rows_file.write(table)
        sync_folder(path)
        manifest = Manifest(
            store=store,
            rows=len(rows),
            arrays={layout.array: grid},
            files={name: (path / name).stat().st_size for name in _files_of(path)},
            checksums={ROWS_FILE: crc32c(table), f"{layout.array}/zarr.json": crc32c(zarr_json)},
        )
        file.write(manifest_text(manifest).encode())
    sync_folder(path.parent)


def read_part(path: Path, layout: Layout, *, store: str) -> Listing | None:
    """Return the listing of the part at `path`; None if there is no such part.

    Raises:
        Broken: what lies there is not what was written.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return None
    grid = manifest.arrays.get(layout.array)
    if manifest.store != store or grid is None or len(grid.shape) != len(layout.dimension_names):
        raise Broken("it belongs to another store")
    try:
        data = bytes_of(path / ROWS_FILE)
    except FileNotFoundError as error:
        raise Broken(f"{ROWS_FILE} is missing") from error
    if crc32c(data) != manifest.checksums.get(ROWS_FILE):
        raise Broken(f"{ROWS_FILE} does not match its checksum")
    return checked_listing([path.name], [grid], [manifest.rows], table_in(data))


def rows_in(listing: Listing) -> Iterator[tuple[str, Row]]:
    """Yield the key and the place of every row of a listing."""
    for row in listing.rows.to_pylist():
        yield row["key"], Row(row["start"], row["length"], row["crc32c"])


def _files_of(part: Path) -> list[str]:
    """Return the files of a part that is being written, without its manifest."""
    files = (path for path in part.rglob("*") if path.is_file() and path.suffix != LEFTOVER)
    return sorted(path.relative_to(part).as_posix() for path in files)


def _rows_table(
    keys: Sequence[str], starts: list[int], *, lengths: list[int], checksums: list[int]
) -> pa.Table:
    return pa.table([keys, starts, lengths, checksums], schema=ROWS_SCHEMA)


def refuse_misfits(keys: Sequence[str], rows: Sequence[np.ndarray], layout: Layout) -> None:
    """Refuse arrays that are no rows of `layout`: a mistake of the program, never of its user."""
    if len(keys) != len(rows) or len(set(keys)) != len(keys):
        raise ValueError(f"{len(rows)} rows need as many different keys, not {len(keys)}")
    dimensions = len(layout.dimension_names) - (0 if layout.ragged else 1)
    if any(row.dtype != np.uint16 or row.ndim != dimensions or row.size == 0 for row in rows):
        raise ValueError(f"rows of {layout.array} are uint16 and have {dimensions} dimensions")
    same = slice(1 if layout.ragged else 0, None)
    if len({row.shape[same] for row in rows}) > 1:
        raise ValueError(f"the rows of a part of {layout.array} must have one shape")
