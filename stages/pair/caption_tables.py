"""Captions from a table: Parquet, CSV or JSON lines, with a path column and caption columns."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ...cache.errors import WrongUse
from ...config.datasets import CaptionTable, Dataset
from .match import stem_of

_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_integer,
    pa.types.is_null,
)


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
        return cls(layout.path, _by_path(_read(main, layout), layout))

    def of_path(self, path: str) -> list[str] | None:
        """Return every caption of the target at `path`, empty ones too; None if no row names it."""
        whole = unicodedata.normalize("NFC", path)
        return self._rows.get(whole, self._rows.get(stem_of(path)))

    def rows_without(self, stems: Collection[str]) -> list[str]:
        """Return the paths in the table that match none of these targets' stems."""
        return [path for path in self._rows if path not in stems and stem_of(path) not in stems]


def _read(main: Dataset, layout: CaptionTable) -> pa.Table:
    read, shape = _FORMATS[str(main.caption_strategy)]
    try:
        table = read(layout.path)
    except (OSError, pa.ArrowException) as error:
        raise WrongUse(
            f"Dataset {main.id}: the caption table {layout.path} cannot be read: {error}.",
            f"Fix the file: {shape}."
            if layout.path.is_file()
            else f"Fix `{main.caption_strategy}.path`: relative to the working directory.",
        ) from error
    missing = [name for name in _columns(layout) if name not in table.column_names]
    if missing:
        raise WrongUse(
            f"Dataset {main.id}: the caption table {layout.path} has no column "
            f"{', '.join(missing)}; it has {', '.join(table.column_names)}.",
            "Set `filename_column` and `caption_column`.",
        )
    table = table.select(_columns(layout))
    for field in table.schema:
        if not _is_text(field.type):
            raise WrongUse(
                f"Dataset {main.id}: the column {field.name} of the caption table {layout.path} "
                f"holds {field.type}, not text.",
                "Write it as text, or as lists of texts.",
            )
    return table


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds texts, numbers, which are texts as well, or lists of them."""
    nested = (pa.types.is_list, pa.types.is_large_list, pa.types.is_dictionary)
    if any(fits(kind) for fits in nested):
        return _is_text(kind.value_type)
    return any(fits(kind) for fits in _TEXT_TYPES)


def _columns(layout: CaptionTable) -> list[str]:
    fallback = [layout.fallback_caption_column] if layout.fallback_caption_column else []
    return list(dict.fromkeys([layout.filename_column, *layout.caption_column, *fallback]))


def _by_path(table: pa.Table, layout: CaptionTable) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = defaultdict(list)
    for row in table.to_pylist():
        if row[layout.filename_column] is None:
            continue
        path = str(row[layout.filename_column]).removeprefix("./")
        path = unicodedata.normalize("NFC", path)  # as the files' names are
        captions = [text for name in layout.caption_column for text in _texts(row[name])]
        if layout.fallback_caption_column and not any(text.strip() for text in captions):
            captions = _texts(row[layout.fallback_caption_column])
        rows[path] += captions
    return dict(rows)


def _texts(cell: Any) -> list[str]:
    cells = cell if isinstance(cell, list) else [cell]
    return [str(text) for text in cells if text is not None]


def _read_parquet(path: Path) -> pa.Table:
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read()


def _read_csv(path: Path) -> pa.Table:
    """Read every cell as text: a caption "007" is not the number 7."""
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with path.open("rb") as file:
        names = pyarrow.csv.open_csv(file, parse_options=parsing).schema.names
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=texts)


def _read_json_lines(path: Path) -> pa.Table:
    """Read texts as they are: one that looks like a time stays a text."""
    table = pyarrow.json.read_json(path)
    texts = [(field.name, _with_texts(field.type)) for field in table.schema]
    if pa.schema(texts).equals(table.schema):
        return table
    written = pyarrow.json.ParseOptions(explicit_schema=pa.schema(texts))
    return pyarrow.json.read_json(path, parse_options=written)


def _with_texts(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    return pa.list_(_with_texts(kind.value_type)) if pa.types.is_list(kind) else kind


_FORMATS: dict[str, tuple[Callable[[Path], pa.Table], str]] = {
    "parquet": (_read_parquet, "a Parquet table, whole"),
    "csv": (
        _read_csv,
        "UTF-8, a first line of column names, captions with commas in double quotes",
    ),
    "jsonl": (
        _read_json_lines,
        "UTF-8, one JSON object a line, captions in all of them a text or in all a list",
    ),
}
