"""Kinds of values: what a user may write for each, read kindly where the meaning is clear."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from .latent_geometry import TOKEN_PIXELS


class Written(BaseModel):
    """What stands in a user's file: frozen, every key known, numbers finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(ge=0, lt=1)]
"""From 0 to less than 1."""
Count = Annotated[Whole, Field(ge=1)]
CountFromZero = Annotated[Whole, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


def _zero_is_none(value: Any) -> Any:
    return None if value in (0, "0") and not isinstance(value, bool) else value


Limit = Annotated[Count | None, BeforeValidator(_zero_is_none)]
"""A count; 0 and null say that there is no limit."""


def _path(value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise ValueError("must be a path in quotes")
    if not str(value).strip():
        raise ValueError("must not be empty")
    return Path(value).expanduser()


File = Annotated[Path, BeforeValidator(_path)]
Folder = Annotated[Path, BeforeValidator(_path)]


def names_of(value: Any) -> Any:
    """One name or a list of names, as a tuple of names."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("must be a text or a list of texts")
    if not all(name.strip() for name in names):
        raise ValueError("must not hold an empty text")
    return tuple(names)


Names = Annotated[tuple[str, ...], BeforeValidator(names_of)]


def _auto_or_whole(value: Any) -> Any:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"auto|\d{1,9}", text):
        raise ValueError(f'must be "auto" or a whole number, not {value!r}')
    return text if text == "auto" else int(text)


AutoOrWhole = Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_whole)]


def _auto_or_count(value: Any) -> Any:
    number = _auto_or_whole(value)
    if number == 0:
        raise ValueError(f'must be "auto" or a whole number above 0, not {value!r}')
    return number


AutoOrCount = Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_count)]


def only(wanted: str, otherwise: str) -> Callable[[Any], Any]:
    """A check that lets `wanted` through and answers everything else with `otherwise`."""

    def check(value: Any) -> Any:
        if value != wanted:
            raise ValueError(f'must be "{wanted}", not {value!r}: {otherwise}')
        return value

    return check


@dataclass(frozen=True, slots=True)
class PreviewSize:
    """How large previews are.

    Attributes:
        width, height: in pixels. Unless `exact`, only their product counts: it is the area
            of a preview at its sample's own ratio.
        exact: previews have exactly this width and height.
    """

    width: int
    height: int
    exact: bool = False

    @property
    def area(self) -> int:
        """In square pixels."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}{'!' if self.exact else ''}"

    @classmethod
    def parse(cls, value: Any) -> PreviewSize:
        """Read `1024x768`, `1024` (a square's area) or `1024x768!` (exactly that size).

        Raises:
            ValueError: another form, a side under 32 pixels, or an exact side that latents
                cannot have.
        """
        if isinstance(value, cls):
            return value
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5})(!?))?", str(value).strip().lower())
        if isinstance(value, bool) or match is None:
            raise ValueError(
                f'must be like "1024x1024", "1024" or "1024x768!" (exactly so), not {value!r}'
            )
        width, height = int(match[1]), int(match[2] or match[1])
        exact = bool(match[3])
        if min(width, height) < 32:
            raise ValueError(f"must be at least 32 pixels on each side, not {value!r}")
        if exact and (width % TOKEN_PIXELS or height % TOKEN_PIXELS):
            raise ValueError(f"with `!` both sides must be multiples of {TOKEN_PIXELS}")
        return cls(width, height, exact)


Size = Annotated[PreviewSize, BeforeValidator(PreviewSize.parse), PlainSerializer(str)]
