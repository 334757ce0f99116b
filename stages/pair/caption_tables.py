"""Captions from a table: Parquet, CSV or JSON lines, with a path column and caption columns."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ...cache.errors import Broken, WrongUse
from ...cache.regular_file import json_in, refuse_irregular
from ...config.datasets import CaptionTable, Dataset
from .match import stem_of

MOST_CAPTION_BYTES = 1_000_000
LONGEST_LINE_BYTES = 4 * MOST_CAPTION_BYTES  # it may hold several captions
BATCH_ROWS = 1024
# Of the wanted columns of a group of rows in a Parquet table, for which memory is taken at once.
MOST_GROUP_BYTES, MOST_ROW_BYTES = 1 << 26, 1 << 13

Row = dict[str, Any]
Names = dict[str, None]


class TableCaptions:
    """The captions of a whole dataset, by the targets' paths, with or without extension."""

    def __init__(self, path: Path, rows: dict[str, list[str]]) -> None:
        self.path, self._rows = path, rows

    @classmethod
    def of(cls, main: Dataset) -> TableCaptions | None:
        """Read the table that `main` names; return None if its captions come from elsewhere.

        Raises:
            WrongUse: there is no such file, it cannot be read, or it lacks a column.
        """
        if main.caption_strategy not in _FORMATS:
            return None
        layout: CaptionTable | None = getattr(main, main.caption_strategy)
        if layout is None:
            raise WrongUse(
                f"Dataset {main.id} takes its captions from {main.caption_strategy} and does not "
                "say from which file.",
                f'Add `"{main.caption_strategy}": {{"path": ...}}` to it.',
            )
        return cls(layout.path, _read(main, layout))

    def of_path(self, path: str) -> list[str] | None:
        """Return every caption of the target at `path`, empty ones too; None if no row names it."""
        whole = unicodedata.normalize("NFC", path)
        return self._rows.get(whole, self._rows.get(stem_of(path)))

    def rows_without(self, stems: Collection[str]) -> list[str]:
        """Return the paths in the table that match none of these targets' stems."""
        return [path for path in self._rows if path not in stems and stem_of(path) not in stems]


def _read(main: Dataset, layout: CaptionTable) -> dict[str, list[str]]:
    rows_of, shape = _FORMATS[str(main.caption_strategy)]
    names: Names = {}
    try:
        refuse_irregular(layout.path)
        rows = _by_path(rows_of(layout.path, _columns(layout), names), layout)
    except (OSError, pa.ArrowException, Broken) as error:
        raise WrongUse(
            f"Dataset {main.id}: the caption table {layout.path} cannot be read: {error}.",
            f"Fix the file: {shape}."
            if layout.path.is_file()
            else f"Fix `{main.caption_strategy}.path`: relative to the working directory.",
        ) from error
    missing = [name for name in _columns(layout) if name not in names]
    if missing:
        raise WrongUse(
            f"Dataset {main.id}: the caption table {layout.path} has no column "
            f"{', '.join(missing)}; it has {', '.join(names)}.",
            "Set `filename_column` and `caption_column`.",
        )
    return rows


def _columns(layout: CaptionTable) -> list[str]:
    fallback = [layout.fallback_caption_column] if layout.fallback_caption_column else []
    return list(dict.fromkeys([layout.filename_column, *layout.caption_column, *fallback]))


def _by_path(table: Iterable[Row], layout: CaptionTable) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = defaultdict(list)
    for row in table:
        for path in _texts(row, layout.filename_column)[:1]:
            path = unicodedata.normalize("NFC", path.removeprefix("./"))  # as the files' names are
            captions = [text for name in layout.caption_column for text in _texts(row, name)]
            if layout.fallback_caption_column and not any(text.strip() for text in captions):
                captions = _texts(row, layout.fallback_caption_column)
            rows[path] += captions
    return dict(rows)


def _texts(row: Row, column: str) -> list[str]:
    """Return the texts, or numbers as texts, of a cell; of a longer one as much as tells that."""
    cell = row.get(column)
    cells = [one for one in (cell if isinstance(cell, list) else [cell]) if one is not None]
    for one in cells:
        if not isinstance(one, str | int) or isinstance(one, bool):
            raise Broken(f"the column {column} of a row holds {type(one).__name__}, not text")
    return [str(one)[: MOST_CAPTION_BYTES + 1] for one in cells]


def _parquet_rows(path: Path, wanted: list[str], names: Names) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        names |= dict.fromkeys(file.schema_arrow.names)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = map(group.column, range(group.num_columns))
            size = sum(
                column.total_uncompressed_size
                for column in columns
                if column.path_in_schema.partition(".")[0] in wanted
            )
            if size > MOST_GROUP_BYTES + MOST_ROW_BYTES * group.num_rows:
                raise Broken(f"{group.num_rows} rows of it hold {size} bytes of text")
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            yield from batch.to_pylist()


def _csv_rows(path: Path, wanted: list[str], names: Names) -> Iterator[Row]:
    """Yield every cell as text: a caption "007" is not the number 7."""
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    reading = pyarrow.csv.ReadOptions(block_size=LONGEST_LINE_BYTES)
    with pyarrow.csv.open_csv(path, reading, parsing) as file:
        names |= dict.fromkeys(file.schema.names)
    texts = {name: pa.string() for name in wanted if name in names}
    converting = pyarrow.csv.ConvertOptions(column_types=texts, include_columns=list(texts))
    with pyarrow.csv.open_csv(path, reading, parsing, converting) as file:
        for batch in file if texts else ():
            yield from batch.to_pylist()


def _json_rows(path: Path, wanted: list[str], names: Names) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(LONGEST_LINE_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            if len(line) > LONGEST_LINE_BYTES:
                raise Broken(f"line {number} has more than {LONGEST_LINE_BYTES} bytes")
            if not line.strip():
                continue
            try:
                row = json_in(line)
            except ValueError as error:
                raise Broken(f"line {number}: {error}") from error
            if not isinstance(row, dict):
                raise Broken(f"line {number} is not a JSON object")
            names |= {name: None for name in wanted if name in row} or dict.fromkeys(row)
            yield row


_FORMATS: dict[str, tuple[Callable[[Path, list[str], Names], Iterator[Row]], str]] = {
    "parquet": (_parquet_rows, "a Parquet table, whole, each caption a text or a list of texts"),
    "csv": (
        _csv_rows,
        "UTF-8, a first line of column names, captions with commas in double quotes, 4 MB a line",
    ),
    "jsonl": (_json_rows, "UTF-8, one JSON object a line, each caption a text or a list of texts"),
}
