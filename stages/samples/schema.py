"""The columns of the pairs table: samples become rows that a person can read, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache.format.tables import table_blocks
from .sample import Picture, Sample

BLOCK_ROWS = 8192


GEOMETRY = tuple(field.name for field in fields(Picture))


def _strings(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.string(), nullable=False) for name in names]


def _picture(key: str, *, box: pa.DataType, size: pa.DataType) -> pa.StructType:
    return pa.struct(
        [
            *_strings("dataset", "path", "digest"),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("box", box, nullable=False),
            pa.field("size", size, nullable=False),
            pa.field("vl_size", pa.list_(pa.int32())),
            *_strings(key),
        ]
    )


_PICTURE = _picture("latent_key", box=pa.list_(pa.float64(), 4), size=pa.list_(pa.int32(), 2))
# Parquet cannot be read back where a list of fixed length stands in a struct that may be null
_MASK = _picture("weight_key", box=pa.list_(pa.float64()), size=pa.list_(pa.int32()))
PAIRS_SCHEMA = pa.schema(
    [
        *_strings("sample", "dataset"),
        pa.field("target", _PICTURE, nullable=False),
        pa.field("references", pa.list_(_PICTURE), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        *_strings("prefix_key"),
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
        *_strings("group"),
        pa.field("mask", _MASK),
    ]
)
# The columns that samples are made of: the keys follow from them.
OF_SAMPLES = (
    *("sample", "dataset", "captions", "group"),
    *(
        f"{column}.{name}"
        for column in ("target", "references.list.element", "mask")
        for name in GEOMETRY
    ),
)
REJECTED_SCHEMA = pa.schema(_strings("sample", "dataset", "path", "reason", "detail"))


@dataclass(frozen=True, slots=True, order=True)
class Rejection:
    """The reason why a sample or a file is not trained on.

    Attributes:
        sample: the sample it belongs to, named as if it had been accepted.
        dataset, path: the file that is at fault, or the place where one is missing.
        reason: a short code; `detail` says it in words.
    """

    sample: str
    dataset: str
    path: str
    reason: str
    detail: str


def blocks_of(rows: Iterable[tuple[Sample, Sequence[str]]]) -> Iterator[pa.RecordBatch]:
    """Yield rows of the pairs table, `BLOCK_ROWS` at a time.

    Args:
        rows: each sample and its warning codes.
    """
    remaining = iter(rows)
    while block := list(islice(remaining, BLOCK_ROWS)):
        yield pa.RecordBatch.from_pylist(
            [_row(sample, codes) for sample, codes in block], schema=PAIRS_SCHEMA
        )


def samples_in(table: pa.Table) -> list[Sample]:
    """Return the samples that `blocks_of` made rows of; older tables lack masks and groups."""
    table = table.combine_chunks()
    targets = _pictures(flat(table["target"]))
    references = flat(table["references"])
    every_reference = iter(_pictures(references.flatten()))
    known = table.column_names
    masks: list[Picture | None] = [None] * len(targets)
    if "mask" in known:
        structs = flat(table["mask"])
        found = iter(_pictures(structs.drop_null()))
        masks = [next(found) if there else None for there in structs.is_valid().to_pylist()]
    return [
        Sample(name, dataset, target, tuple(islice(every_reference, count)), tuple(captions), *rest)
        for name, dataset, target, count, captions, *rest in zip(
            table["sample"].to_pylist(),
            table["dataset"].to_pylist(),
            targets,
            references.value_lengths().to_pylist(),
            table["captions"].to_pylist(),
            table["group"].to_pylist() if "group" in known else [""] * len(targets),
            masks,
            strict=True,
        )
    ]


def blocks_at(
    table: Path, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
    """Read these rows of the table in a file, block by block.

    Args:
        rows: their numbers, ascending, none twice.

    Yields:
        The numbers of some rows, and those rows.
    """
    first = 0
    for block in table_blocks(table):
        here = rows[(rows >= first) & (rows < first + len(block))]
        if len(here):
            yield here, block.take(pa.array(here - first))
        first += len(block)


def flat(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    if column.num_chunks == 0:
        return pa.array([], type=column.type)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _row(sample: Sample, codes: Sequence[str]) -> dict[str, Any]:
    mask = sample.mask
    return {
        "sample": sample.name,
        "dataset": sample.dataset,
        "target": _picture_row(sample.target),
        "references": [_picture_row(picture) for picture in sample.references],
        "captions": sample.captions,
        "prefix_key": sample.prefix_key,
        "warnings": list(codes),
        "group": sample.group,
        "mask": mask and {**_geometry_of(mask), "weight_key": mask.weight_key},
    }


def _picture_row(picture: Picture) -> dict[str, Any]:
    return {**_geometry_of(picture), "latent_key": picture.latent_key}


def _geometry_of(picture: Picture) -> dict[str, Any]:
    return {name: getattr(picture, name) for name in GEOMETRY}


def _pictures(structs: pa.Array) -> list[Picture]:
    """Make pictures column by column, which is several times faster than row by row."""
    columns = (structs.field(name).to_pylist() for name in GEOMETRY)
    return [
        Picture(dataset, path, digest, width, height, tuple(box), tuple(size), vl and tuple(vl))
        for dataset, path, digest, width, height, box, size, vl in zip(*columns, strict=True)
    ]
