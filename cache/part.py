"""A part: rows written together, there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .arrays import ArrayReader, Bits, Broken, crc32c, write_array
from .atomic import file_in_place, make_folder, readable_json, sync_folder
from .grid import chunk_length, place, zarr_metadata
from .manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from .tables import table_bytes, table_in

ROWS_FILE = "rows.parquet"
ATTRIBUTES = {"qedit_dtype": "bfloat16"}


@dataclass(frozen=True)
class Layout:
    """What the rows of a store look like.

    Args:
        array: the name of the array they lie in.
        dimension_names: of that array.
        ragged: whether rows differ in length along the first dimension. If not, the first
            dimension counts rows, and the rows of a part have one shape.
    """

    array: str
    dimension_names: tuple[str, ...]
    ragged: bool


@dataclass(frozen=True)
class Damage:
    """Something in a store that is not what was written; `key` is None if all of a part is."""

    part: Path
    key: str | None
    what: str


class Part:
    """A complete part that can be read. The keys are not kept: the store has them."""

    def __init__(self, path: Path, manifest: Manifest, *, layout: Layout, table: pa.Table) -> None:
        self.path, self.manifest, self.layout = path, manifest, layout
        self._starts: npt.NDArray[np.int64] = table["start"].to_numpy()
        self._lengths: npt.NDArray[np.int32] = table["length"].to_numpy()
        self._checksums: npt.NDArray[np.uint32] = table["crc32c"].to_numpy()
        self._array = ArrayReader(path / layout.array, manifest.arrays[layout.array])

    def read(self, row: int) -> Bits:
        """Row number `row`, its checksum verified; raises Broken."""
        start, length = int(self._starts[row]), int(self._lengths[row])
        slab = self._array.read(start, length, checksum=int(self._checksums[row]))
        return slab if self.layout.ragged else slab[0]

    def shape(self, row: int) -> tuple[int, ...]:
        """The shape of row number `row`, from the table alone."""
        rest = self._array.grid.shape[1:]
        return (int(self._lengths[row]), *rest) if self.layout.ragged else rest


def write_part(
    path: Path, layout: Layout, *, store: str, keys: Sequence[str], rows: Sequence[Bits]
) -> None:
    """Write a new part of these rows at `path`; it exists once its manifest does."""
    slabs = [row if layout.ragged else row[None] for row in rows]
    lengths = [len(slab) for slab in slabs]
    chunk = chunk_length(lengths) if layout.ragged else 1
    grid, starts = place(lengths, slabs[0].shape[1:], chunk=chunk)
    described = {"attributes": ATTRIBUTES, "dimension_names": list(layout.dimension_names)}
    zarr_json = readable_json({**zarr_metadata(grid), **described}).encode()
    make_folder(path)
    array = path / layout.array
    checksums = write_array(array, grid, starts=starts, rows=slabs, zarr_json=zarr_json)
    table = table_bytes(_rows_table(keys, starts, lengths=lengths, checksums=checksums))
    with file_in_place(path / ROWS_FILE) as file:
        file.write(table)
    sync_folder(path)
    manifest = Manifest(
        store=store,
        rows=len(rows),
        arrays={layout.array: grid},
        files={name: (path / name).stat().st_size for name in _files_of(path)},
        checksums={ROWS_FILE: crc32c(table), f"{layout.array}/zarr.json": crc32c(zarr_json)},
    )
    write_manifest(path, manifest)
    sync_folder(path.parent)


def read_part(path: Path, layout: Layout, *, store: str) -> tuple[Part, list[str]] | None:
    """The part at `path` and its keys; None if there is none, for want of a manifest.

    Raises:
        Broken: what lies there is not what was written.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return None
    if manifest.store != store or layout.array not in manifest.arrays:
        raise Broken("it belongs to another store")
    try:
        data = (path / ROWS_FILE).read_bytes()
    except FileNotFoundError as error:
        raise Broken(f"{ROWS_FILE} is missing") from error
    if crc32c(data) != manifest.checksums[ROWS_FILE]:
        raise Broken(f"{ROWS_FILE} does not match its checksum")
    table = table_in(data)
    return Part(path, manifest, layout=layout, table=table), table["key"].to_pylist()


def verify_part(
    path: Path, layout: Layout, *, store: str, wanted: Set[str] | None
) -> Iterator[Damage]:
    """Read all of the part at `path` (or its rows of these keys); what is damaged in it."""
    try:
        found = read_part(path, layout, store=store)
    except Broken as error:
        yield Damage(path, None, str(error))
        return
    if found is None:
        return
    part, keys = found
    if wanted is None:
        yield from (Damage(path, None, what) for what in _broken_files(part))
    for row, key in enumerate(keys):
        if wanted is None or key in wanted:
            try:
                part.read(row)
            except Broken as error:
                yield Damage(path, key, str(error))


def _broken_files(part: Part) -> Iterator[str]:
    """What is wrong with the files of `part` as such; the rows are another matter."""
    checksums = part.manifest.checksums
    for name, size in part.manifest.files.items():
        path = part.path / name
        if not path.is_file():
            yield f"the file {name} is missing"
        elif path.stat().st_size != size:
            yield f"the file {name} has {path.stat().st_size} bytes instead of {size}"
        elif name in checksums and crc32c(path.read_bytes()) != checksums[name]:
            yield f"the file {name} does not match its checksum"


def _files_of(part: Path) -> list[str]:
    files = (path for path in part.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return sorted(path.relative_to(part).as_posix() for path in files)


def _rows_table(
    keys: Sequence[str], starts: list[int], *, lengths: list[int], checksums: list[int]
) -> pa.Table:
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "start": pa.array(starts, pa.int64()),
            "length": pa.array(lengths, pa.int32()),
            "crc32c": pa.array(checksums, pa.uint32()),
        }
    )
