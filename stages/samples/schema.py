"""Samples as rows of a Parquet table that a person can read, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from .sample import Picture, Sample

BLOCK_ROWS = 8192


def _picture(key: str, *, box: pa.DataType, size: pa.DataType) -> pa.StructType:
    return pa.struct(
        [
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("box", box, nullable=False),
            pa.field("size", size, nullable=False),
            pa.field("vl_size", pa.list_(pa.int32())),
            pa.field(key, pa.string(), nullable=False),
        ]
    )


_PICTURE = _picture("latent_key", box=pa.list_(pa.float64(), 4), size=pa.list_(pa.int32(), 2))
# Parquet cannot be read back where a list of fixed length stands in a struct that may be null
_MASK = _picture("weight_key", box=pa.list_(pa.float64()), size=pa.list_(pa.int32()))
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("target", _PICTURE, nullable=False),
        pa.field("references", pa.list_(_PICTURE), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("prefix_key", pa.string(), nullable=False),
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("mask", _MASK),
    ]
)
# The columns that samples are made of: the keys follow from them.
OF_SAMPLES = (
    *("sample", "dataset", "captions", "group"),
    *(f"target.{one.name}" for one in _PICTURE if one.name != "latent_key"),
    *(f"references.list.element.{one.name}" for one in _PICTURE if one.name != "latent_key"),
    *(f"mask.{one.name}" for one in _MASK if one.name != "weight_key"),
)
REJECTED_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("sample", "dataset", "path", "reason", "detail")
    ]
)


@dataclass(frozen=True, slots=True, order=True)
class Rejection:
    """Why something is not trained on.

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
    """Rows of the pairs table, `BLOCK_ROWS` at a time, of samples and their warning codes."""
    remaining = iter(rows)
    while block := list(islice(remaining, BLOCK_ROWS)):
        columns = {
            "sample": [sample.name for sample, _ in block],
            "dataset": [sample.dataset for sample, _ in block],
            "target": [_picture_row(sample.target) for sample, _ in block],
            "references": [[_picture_row(one) for one in sample.references] for sample, _ in block],
            "captions": [sample.captions for sample, _ in block],
            "prefix_key": [sample.prefix_key for sample, _ in block],
            "warnings": [list(codes) for _, codes in block],
            "group": [sample.group for sample, _ in block],
            "mask": [sample.mask and _mask_row(sample.mask) for sample, _ in block],
        }
        yield pa.RecordBatch.from_pydict(columns, schema=PAIRS_SCHEMA)


def samples_in(table: pa.Table) -> list[Sample]:
    """The samples that `blocks_of` made rows of; tables from before masks and groups as well."""
    table = table.combine_chunks()
    targets = _pictures(flat(table["target"]))
    lists = flat(table["references"])
    every_reference = _pictures(lists.flatten())
    ends = _ends(lists)
    known = table.column_names
    groups = table["group"].to_pylist() if "group" in known else [""] * len(targets)
    masks = _masks(flat(table["mask"])) if "mask" in known else [None] * len(targets)
    return [
        Sample(name, dataset, target, tuple(every_reference[start:end]), tuple(captions), *rest)
        for name, dataset, target, (start, end), captions, *rest in zip(
            table["sample"].to_pylist(),
            table["dataset"].to_pylist(),
            targets,
            ends,
            table["captions"].to_pylist(),
            groups,
            masks,
            strict=True,
        )
    ]


def flat(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if column.num_chunks == 0:
        return pa.array([], type=column.type)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _picture_row(picture: Picture) -> dict[str, Any]:
    return {**_geometry_row(picture), "latent_key": picture.latent_key}


def _mask_row(picture: Picture) -> dict[str, Any]:
    return {**_geometry_row(picture), "weight_key": picture.weight_key}


def _geometry_row(picture: Picture) -> dict[str, Any]:
    return {
        "dataset": picture.dataset,
        "path": picture.path,
        "digest": picture.digest,
        "width": picture.width,
        "height": picture.height,
        "box": picture.box,
        "size": picture.size,
        "vl_size": picture.vl_size,
    }


def _ends(lists: pa.Array) -> list[tuple[int, int]]:
    lengths = lists.value_lengths().to_pylist()
    ends, start = [], 0
    for length in lengths:
        ends.append((start, start + length))
        start += length
    return ends


def _masks(structs: pa.Array) -> list[Picture | None]:
    there = structs.is_valid()
    found = iter(_pictures(structs.filter(there)))
    return [next(found) if one else None for one in there.to_pylist()]


def _pictures(structs: pa.Array) -> list[Picture]:
    """Column by column: several times faster than row by row."""
    fields = {name: structs.field(name).to_pylist() for name in structs.type.names}
    return [
        Picture(dataset, path, digest, width, height, tuple(box), tuple(size), vl and tuple(vl))
        for dataset, path, digest, width, height, box, size, vl in zip(
            fields["dataset"],
            fields["path"],
            fields["digest"],
            fields["width"],
            fields["height"],
            fields["box"],
            fields["size"],
            fields["vl_size"],
            strict=True,
        )
    ]
