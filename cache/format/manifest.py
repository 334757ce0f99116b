"""The small JSON that makes a part complete: what is in it, and that it is all there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import Broken
from ..files.atomic import readable_json
from ..files.failing_disk import bytes_of
from ..files.json_file import read_object
from ..files.sealed import CHECKSUM, checksum_of
from ..regular_file import json_in
from .grid import Grid, grid_in

MANIFEST_FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The contents of a part.

    `store` is the fingerprint of the store it was written for, `arrays` how each array is
    cut. `files` gives every file's length in bytes, by its path in the part, where a grid that
    is read has the lengths of packed shards from; `checksums` the crc32c of those files that
    carry none inside.
    """

    store: str
    rows: int
    arrays: dict[str, Grid]
    files: dict[str, int]
    checksums: dict[str, int]


def manifest_text(manifest: Manifest) -> str:
    """Return the content of manifest.json, the file that completes a part."""
    fields = {
        "format": FORMAT,
        "store": manifest.store,
        "rows": manifest.rows,
        "arrays": {name: grid.as_json() for name, grid in manifest.arrays.items()},
        "files": manifest.files,
        "checksums": {name: f"{crc:08x}" for name, crc in manifest.checksums.items()},
    }
    return readable_json({**fields, CHECKSUM: checksum_of(fields)})


def is_as_written(part: Path) -> bool:
    """Return whether the readable manifest of `part` is, byte by byte, what was written."""
    data = bytes_of(part / MANIFEST_FILE)
    return data == readable_json(json_in(data)).encode()


def read_manifest(part: Path) -> Manifest | None:
    """Return the manifest of `part`; None if there is none, and so no part.

    Raises:
        Broken: it is not the one that was written, or of a format this version cannot read.
    """
    try:
        fields = read_object(part / MANIFEST_FILE)
        if fields.pop(CHECKSUM) != checksum_of(fields):
            raise Broken("its manifest does not match its checksum")
        if fields["format"] != FORMAT:
            raise Broken(f"it has format {fields['format']}, this qedit reads {FORMAT}")
        if not all(type(size) is int for size in fields["files"].values()):
            raise Broken("its manifest gives no lengths of files")
        return Manifest(
            store=fields["store"],
            rows=fields["rows"],
            arrays={
                name: _with_lengths(grid_in(grid), name, files=fields["files"])
                for name, grid in fields["arrays"].items()
            },
            files=fields["files"],
            checksums={name: int(crc, 16) for name, crc in fields["checksums"].items()},
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken("its manifest cannot be read") from error


def _with_lengths(grid: Grid, array: str, *, files: dict[str, int]) -> Grid:
    """Return the grid with the byte lengths of its shards, where chunks are compressed."""
    if not grid.compressed:
        return grid
    shards = (f"{array}/{grid.shard_name(number)}" for number in range(grid.shards))
    return replace(grid, shard_bytes=tuple(files[name] for name in shards))
