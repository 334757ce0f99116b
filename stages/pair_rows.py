"""Samples as rows of a Parquet table that a person can read, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from .samples import Picture, Sample

BLOCK_ROWS = 8192

_PICTURE = pa.struct(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("box", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("size", pa.list_(pa.int32(), 2), nullable=False),
        pa.field("vl_size", pa.list_(pa.int32())),
        pa.field("latent_key", pa.string(), nullable=False),
    ]
)
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("target", _PICTURE, nullable=False),
        pa.field("references", pa.list_(_PICTURE), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("prefix_key", pa.string(), nullable=False),
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
    ]
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
            "target": [_row(sample.target) for sample, _ in block],
            "references": [[_row(one) for one in sample.references] for sample, _ in block],
            "captions": [sample.captions for sample, _ in block],
            "prefix_key": [sample.prefix_key for sample, _ in block],
            "warnings": [list(codes) for _, codes in block],
        }
        yield pa.RecordBatch.from_pydict(columns, schema=PAIRS_SCHEMA)


def samples_in(table: pa.Table) -> list[Sample]:
    """The samples that `blocks_of` made rows of."""
    table = table.combine_chunks()
    targets = _pictures(_flat(table["target"]))
    lists = _flat(table["references"])
    every_reference = _pictures(lists.flatten())
    ends = _ends(lists)
    return [
        Sample(name, dataset, target, tuple(every_reference[start:end]), tuple(captions))
        for name, dataset, target, (start, end), captions in zip(
            table["sample"].to_pylist(),
            table["dataset"].to_pylist(),
            targets,
            ends,
            table["captions"].to_pylist(),
            strict=True,
        )
    ]


def _row(picture: Picture) -> dict[str, Any]:
    return {
        "dataset": picture.dataset,
        "path": picture.path,
        "digest": picture.digest,
        "width": picture.width,
        "height": picture.height,
        "box": picture.box,
        "size": picture.size,
        "vl_size": picture.vl_size,
        "latent_key": picture.latent_key,
    }


def _flat(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 0:
        return pa.array([], type=column.type)
    return column.combine_chunks()


def _ends(lists: pa.Array) -> list[tuple[int, int]]:
    lengths = lists.value_lengths().to_pylist()
    ends, start = [], 0
    for length in lengths:
        ends.append((start, start + length))
        start += length
    return ends


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
