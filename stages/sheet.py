"""Sheets: pictures side by side, labelled, so that a person can compare them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 224
GAP = 12
HEAD = 30
CAPTION_HEIGHT = 44
PAPER = "#fbfaf7"
INK = "#22201c"
FAINT = "#6f6a60"


@dataclass(frozen=True)
class Row:
    """One sample on a sheet: its pictures by column (a column may hold several), its caption."""

    columns: tuple[tuple[Image.Image, ...], ...]
    caption: str


def sheet(labels: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw `rows` under column `labels`; every row has one entry for each label."""
    width = GAP + len(labels) * (CELL + GAP)
    row_height = CELL + CAPTION_HEIGHT
    page = Image.new("RGB", (width, HEAD + GAP + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(page)
    bold, plain = ImageFont.load_default(16), ImageFont.load_default(14)
    for column, label in enumerate(labels):
        draw.text((_left(column) + CELL // 2, HEAD // 2 + 4), label, INK, bold, anchor="mm")
    for number, row in enumerate(rows):
        top = HEAD + number * row_height
        for column, pictures in enumerate(row.columns):
            _paste(page, pictures, left=_left(column), top=top)
        lines = textwrap.wrap(row.caption, width=width // 8)[:2]
        draw.multiline_text((GAP, top + CELL + 6), "\n".join(lines), FAINT, plain, spacing=2)
    return page


def _left(column: int) -> int:
    return GAP + column * (CELL + GAP)


def _paste(page: Image.Image, pictures: Sequence[Image.Image], *, left: int, top: int) -> None:
    """Fit one or more pictures into a cell, side by side in a grid, each at its own ratio."""
    across = 1 if len(pictures) == 1 else 2
    down = -(-len(pictures) // across)
    cell = (CELL // across, CELL // down)
    for place, picture in enumerate(pictures):
        scale = min((cell[0] - 2) / picture.width, (cell[1] - 2) / picture.height)
        fitted = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
            Image.Resampling.LANCZOS,
        )
        row, column = divmod(place, across)
        page.paste(
            fitted,
            (
                left + column * cell[0] + (cell[0] - fitted.width) // 2,
                top + row * cell[1] + (cell[1] - fitted.height) // 2,
            ),
        )
