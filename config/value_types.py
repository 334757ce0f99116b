"""Types of values: each accepts what a user may write for it, where the meaning is clear."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from .latent_geometry import TOKEN_PIXELS

LARGEST = 2**63  # whole numbers are smaller: the system counts no further
LONGEST_NUMBER = 40  # characters, of a number that is written as a text
SIZE_PATTERN = r"(\d{1,5})(?:[xX](\d{1,5})(!?))?"


class Written(BaseModel):
    """Values of a user's file: frozen, every key known, numbers finite.

    The text under a field says its meaning, then `Unit:` where it has one, then `Why:` its default
    is what it is.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
    )


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    if (isinstance(value, int) and abs(value) >= LARGEST) or len(str(value)) > LONGEST_NUMBER:
        raise ValueError("is too large a number")
    return value


# After the bounds, so that pydantic's JSON Schema names them.
IS_NUMBER = BeforeValidator(_number)
Positive = Annotated[float, Field(gt=0), IS_NUMBER]
NotNegative = Annotated[float, Field(ge=0), IS_NUMBER]
Probability = Annotated[float, Field(ge=0, le=1), IS_NUMBER]
Share = Annotated[float, Field(ge=0, lt=1), IS_NUMBER]
"""From 0 to less than 1."""
Count = Annotated[int, Field(ge=1), IS_NUMBER]
CountFromZero = Annotated[int, Field(ge=0), IS_NUMBER]
Seed = Annotated[int, Field(ge=0, lt=2**63), IS_NUMBER]
Text = Annotated[str, Field(min_length=1)]
Dtype = Literal["fp32", "bf16"]
Device = Literal["cpu", "accelerator"]


def _zero_is_none(value: Any) -> Any:
    return None if value in (0, "0") and not isinstance(value, bool) else value


_ZeroIsNone = Annotated[CountFromZero, Field(description="0 is none")]
Limit = Annotated[
    Count | None, BeforeValidator(_zero_is_none, json_schema_input_type=_ZeroIsNone | None)
]
"""A count; 0 and null say that there is no limit."""


def _path(value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise ValueError("must be a path in quotes")
    if not str(value).strip():
        raise ValueError("must not be empty")
    return expanded(value)


def expanded(value: str | Path) -> Path:
    """Return the path with the home folder in place of a leading ~."""
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"names a home folder that does not exist: {value}") from error


File = Annotated[Path, BeforeValidator(_path)]
Folder = Annotated[Path, BeforeValidator(_path)]


def names_of(value: Any) -> Any:
    """Return one name or a list of names as a tuple of names."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("must be a text or a list of texts")
    if not all(name.strip() for name in names):
        raise ValueError("must not hold an empty text")
    return tuple(names)


Names = Annotated[
    tuple[str, ...], BeforeValidator(names_of, json_schema_input_type=Text | list[Text])
]


def _auto_or_whole(value: Any) -> Any:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"auto|\d{1,9}", text):
        raise ValueError(f'must be "auto" or a whole number, not {value!r}')
    return text if text == "auto" else int(text)


AutoOrWhole = Annotated[
    Literal["auto"] | int,
    BeforeValidator(_auto_or_whole, json_schema_input_type=Literal["auto"] | CountFromZero),
]


def _auto_or_count(value: Any) -> Any:
    number = _auto_or_whole(value)
    if number == 0:
        raise ValueError(f'must be "auto" or a whole number above 0, not {value!r}')
    return number


AutoOrCount = Annotated[
    Literal["auto"] | int,
    BeforeValidator(_auto_or_count, json_schema_input_type=Literal["auto"] | Count),
]


def only(wanted: str, otherwise: str) -> Callable[[Any], Any]:
    """Return a check that accepts `wanted` alone, and refuses all else with `otherwise`."""

    def check(value: Any) -> Any:
        if value != wanted:
            raise ValueError(f'must be "{wanted}", not {value!r}: {otherwise}')
        return value

    return check


@dataclass(frozen=True, slots=True)
class PreviewSize:
    """The size of previews.

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
        """The area in square pixels."""
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
        match = re.fullmatch(SIZE_PATTERN, str(value).strip())
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


_SizeText = Annotated[str, Field(pattern=f"^{SIZE_PATTERN}$", description="like 1024x768!")]
Size = Annotated[
    PreviewSize,
    BeforeValidator(
        PreviewSize.parse,
        json_schema_input_type=_SizeText | Count,
    ),
    PlainSerializer(str),
]
