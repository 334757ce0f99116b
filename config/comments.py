"""Reads JSON as people write it: with // and /* */ comments and trailing commas."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ..cache.errors import Broken
from ..cache.regular_file import json_in

# A string comes first: whatever looks like a comment inside of one is text.
TOKENS = re.compile(
    r"""
      (?P<string>"(?:\\.|[^"\\\n])*")
    | (?P<comment>//[^\n]*|/\*.*?\*/)
    | (?P<unended>/\*)
    | (?P<blank>\s+)
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
MOST_DIGITS = 300  # a float holds such a number, and Python reads it


class NotJson(ValueError):
    """The text is not JSON, not even with comments; the message names line and column."""


def parse(text: str) -> Any:
    """Read JSON with comments and trailing commas.

    Raises:
        NotJson: a syntax error, a comment without an end, a key given twice in one object,
            NaN or Infinity, a number of hundreds of digits, too many levels of nesting.
    """
    try:
        return json_in(
            _plain(text),
            object_pairs_hook=_object_of,
            parse_constant=_refuse_constant,
            parse_int=_whole_number,
        )
    except json.JSONDecodeError as error:
        raise NotJson(
            f"line {error.lineno}, column {error.colno}: {_in_words(error.msg)}"
        ) from error
    except Broken as error:
        raise NotJson(str(error)) from error


def _plain(text: str) -> str:
    """Return the same JSON without comments and trailing commas; nothing else moves."""
    pieces: list[str] = []
    comma: int | None = None  # the piece that is a comma with nothing but blanks after it
    before = ""  # the last mark or string before that comma
    last = ""
    for token in TOKENS.finditer(text):
        kind, piece = token.lastgroup, token.group()
        if kind == "unended":
            raise NotJson(f"{_place(text, token.start())}: this comment has no end")
        if kind == "comment":
            pieces.append(re.sub(r"[^\n]", " ", piece))
            continue
        pieces.append(piece)
        if kind == "blank":
            continue
        if piece in ("]", "}") and comma is not None and before not in ("", "[", "{", ",", ":"):
            pieces[comma] = " "
        comma, before = (len(pieces) - 1, last) if piece == "," else (None, "")
        last = piece
    return "".join(pieces)


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line}, column {column}"


def _in_words(message: str) -> str:
    """Return a message of json in plainer words, where there are any."""
    return {
        "Expecting ',' delimiter": "a comma, or the end of the list or object, is missing here",
        "Expecting ':' delimiter": "a colon after the key is missing here",
        "Expecting property name enclosed in double quotes": "a key in quotes is missing here",
        "Expecting value": "a value is missing here",
        "Extra data": "there is more text after the end",
    }.get(message, message)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise NotJson(f"`{key}` is given twice in one object; keep one of the two")
        values[key] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not a number that can be used here")


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise NotJson(f"the number {digits[:10]}... has {len(digits)} digits")
    return int(digits)
