"""A contact sheet: labelled pictures side by side, so that a person can compare them."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 224
GAP = 12
MARGIN = 20
TITLE_HEIGHT = 46
HEAD = 28
LINE = 19
MOST_LINES = 3
PAPER = "#fbfaf7"
INK = "#22201c"
FAINT = "#6f6a60"
# For captions in letters that Pillow's own font does not have.
WIDE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansJP-Regular.otf", "NotoSansCJKjp-Regular.otf"),
    *("Hiragino Sans GB.ttc", "ipaexg.ttf", "ipag.ttf", "wqy-microhei.ttc", "Arial Unicode.ttf"),
    "DejaVuSans.ttf",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Row:
    """A sample on a sheet.

    Attributes:
        columns: each holds pictures, or none (it is left blank), or words.
    """

    columns: tuple[tuple[Image.Image, ...] | str, ...]
    caption: str


def sheet(
    labels: Sequence[str], rows: Sequence[Row], *, title: str = "", cell: int = CELL
) -> Image.Image:
    """Draw `rows` under column `labels`; every row has one entry for each label.

    Args:
        cell: the edge, in pixels, of the square that a column's pictures are fitted into.
    """
    width = 2 * MARGIN + len(labels) * (cell + GAP) - GAP
    heights = [_row_height(row, cell) for row in rows]
    captions = [list(_lines(row.caption, width - 2 * MARGIN)) for row in rows]
    top = (TITLE_HEIGHT if title else 0) + HEAD + MARGIN // 2
    below = [len(lines) * LINE + 26 for lines in captions]
    page = Image.new("RGB", (width, top + sum(heights) + sum(below)), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((MARGIN, TITLE_HEIGHT // 2 + 6), title, INK, _font(title, 21), anchor="lm")
    for column, label in enumerate(labels):
        middle = _left(column, cell) + cell // 2
        draw.text((middle, top - HEAD // 2 - 3), label, INK, _font(label, 16), anchor="mm")
    for row, height, lines, under in zip(rows, heights, captions, below, strict=True):
        for column, pictures in enumerate(row.columns):
            left = _left(column, cell)
            if isinstance(pictures, str):
                centre = (left + cell // 2, top + height // 2)
                draw.text(centre, pictures, INK, _font(pictures, 16), anchor="mm")
            else:
                _paste(page, pictures, box=(left, top, cell, height))
        for number, line in enumerate(lines):
            place = (MARGIN, top + height + 7 + number * LINE)
            draw.text(place, line, FAINT, _font(line, 14))
        top += height + under
    return page


def _row_height(row: Row, cell: int) -> int:
    """Return the height of its highest picture at the width of a cell; a square at most."""
    heights = [
        round(cell * picture.height / picture.width)
        for pictures in row.columns
        if len(pictures) == 1 and not isinstance(pictures, str)
        for picture in pictures
    ]
    return min(cell, max(heights, default=cell))


def _left(column: int, cell: int) -> int:
    return MARGIN + column * (cell + GAP)


def _paste(
    page: Image.Image, pictures: Sequence[Image.Image], *, box: tuple[int, int, int, int]
) -> None:
    """Fit one or more pictures into a box, in a grid, each at its own ratio.

    Args:
        box: left, top, width and height in pixels.
    """
    left, top, width, height = box
    across = 1 if len(pictures) < 2 else 2
    down = max(1, -(-len(pictures) // across))
    inner = (width // across, height // down)
    for place, picture in enumerate(pictures):
        gap = 0 if across == 1 else 4
        scale = min((inner[0] - gap) / picture.width, (inner[1] - gap) / picture.height)
        fitted = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
            Image.Resampling.LANCZOS,
        )
        row, column = divmod(place, across)
        # the last of an odd number stands in the middle
        spare = inner[0] // 2 if across == 2 and place == len(pictures) - 1 and column == 0 else 0
        page.paste(
            fitted,
            (
                left + column * inner[0] + spare + (inner[0] - fitted.width) // 2,
                top + row * inner[1] + (inner[1] - fitted.height) // 2,
            ),
        )


def _lines(text: str, width: int) -> Iterator[str]:
    """Yield `text` in lines of at most `width` pixels, three at most; broken at blanks."""
    font = _font(text, 14)
    rest = " ".join(text.split())
    for number in range(MOST_LINES):
        if not rest:
            return
        fits = _fitting(rest, font, width)
        if fits < len(rest):
            blank = rest.rfind(" ", 0, fits + 1)
            fits = blank if blank > fits // 2 else fits
        line, rest = rest[:fits].rstrip(), rest[fits:].lstrip()
        if rest and number == MOST_LINES - 1:
            line = line[:-1].rstrip() + "…"
        yield line


def _fitting(text: str, font: Font, width: int) -> int:
    """Return how many characters of `text` fit into `width` pixels, at least one."""
    counts = range(1, len(text) + 1)
    fits = bisect_right(counts, float(width), key=lambda end: float(font.getlength(text[:end])))
    return max(1, fits)


def _font(text: str, size: int) -> Font:
    """Return Pillow's own font, or for letters that it does not have one of the system's."""
    if all(ord(letter) < 0x250 or unicodedata.category(letter)[0] == "P" for letter in text):
        return ImageFont.load_default(size)
    for name in WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
