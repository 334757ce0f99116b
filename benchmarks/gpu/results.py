"""RESULTS.md: what has been measured takes the place of what has not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from table import Row, case_of

NOT_MEASURED = "## Not measured yet"


def with_section(text: str, section: str, rows: Sequence[Row], *, source: str) -> str:
    """`text` with `section` at its end, in the place of one of the same `source`.

    The rows that it has leave the table of those not measured, which goes with its last row.
    """
    parts = [one for one in _parts(text) if f"`{source}`" not in one]
    measured = {_start(row) for row in rows if is_measured(row)}
    kept = [_without(one, measured) if one.startswith(NOT_MEASURED) else one for one in parts]
    return "\n\n".join(part.strip() for part in (*kept, section) if part.strip()) + "\n"


def is_measured(row: Row) -> bool:
    return "error" not in row


def _parts(text: str) -> list[str]:
    """What stands before the first heading of a section, and each section."""
    return re.split(r"(?m)^(?=## )", text)


def _start(row: Row) -> str:
    case = f" {case_of(row)} " if row["what"] in ("qedit", "stock") else " "
    return f"| {row['row']} |{case}|"


def _without(part: str, measured: set[str]) -> str:
    """The section without the lines of what was measured; empty if none is left."""
    lines = part.splitlines()
    kept = [line for line in lines if not any(line.startswith(one) for one in measured)]
    is_row = [line.startswith("| ") for line in kept]
    return "\n".join(kept) if sum(is_row) > 2 else ""  # the head of the table is two lines
