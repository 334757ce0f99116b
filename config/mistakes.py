"""Turns what is wrong in the files into lines, and all lines into one error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..cache.errors import WrongUse
from .spelling import NEARLY_EQUAL, did_you_mean, nearest

LONGEST_VALUE = 60  # characters of a wrong value, or key, that are repeated to the user
MOST_SHOWN = 30  # mistakes in one object
ODD_TEXT = "holds a zero byte, or half of a character (\\ud800 to \\udfff); take it out"
_ODD = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Mistake:
    """A mistake, and where it is.

    Attributes:
        file: as the user named it, or the `--set` that brought the value in.
        text: what is wrong, a half sentence that may follow the key.
        dataset: its id, or its place in the file where it has none.
        key: dots between the keys of nested objects.
    """

    file: str
    text: str
    dataset: str | None = None
    key: str | None = None

    @property
    def line(self) -> str:
        """The mistake as the user reads it: file, dataset, key and text."""
        dataset = f", dataset {self.dataset}" if self.dataset else ""
        key = f"`{_cut(self.key)}` " if self.key else ""
        return f"{self.file}{dataset}: {key}{self.text}"


def refuse(mistakes: Sequence[Mistake]) -> None:
    """Raise all mistakes as one error, if there are any.

    Raises:
        WrongUse: with one line for each mistake.
    """
    lines = list(dict.fromkeys(mistake.line for mistake in mistakes))
    if not lines:
        return
    heading = (
        "The configuration has a mistake:"
        if len(lines) == 1
        else f"The configuration has {len(lines)} mistakes:"
    )
    raise WrongUse(
        "\n".join([heading, *(f"  {line}" for line in lines)]),
        "Nothing was started. Fix this and run the command again.",
    )


def holds_odd_text(value: Any) -> bool:
    """Return whether a text in `value` has a character that no file or name can have."""
    if isinstance(value, dict):
        return holds_odd_text([*value, *value.values()])
    if isinstance(value, list):
        return any(map(holds_odd_text, value))
    return isinstance(value, str) and _ODD.search(value) is not None


def mistakes_in(
    error: ValidationError, model: type[BaseModel], *, known: Iterable[str]
) -> list[tuple[str, str]]:
    """Return (key, text) of the first mistakes that pydantic found, in plain words; then a count.

    Args:
        known: keys of another trainer that a misspelt one may mean.
    """
    mistakes = [
        found
        for found in error.errors()
        # follows from another mistake and says nothing new
        if found["type"] != "default_factory_not_called"
    ]
    shown = [
        (".".join(map(str, found["loc"])), _in_words(found, model, known))
        for found in mistakes[:MOST_SHOWN]
    ]
    more = len(mistakes) - len(shown)
    return [*shown, ("", f"{more} more mistakes of this kind follow")] if more else shown


def _in_words(error: Mapping[str, Any], model: type[BaseModel], known: Iterable[str]) -> str:
    words = WORDS.get(error["type"])
    given = _shown(error["input"])
    if error["type"] == "extra_forbidden":
        return _unknown(error["loc"], model, known)
    if error["type"] == "missing":
        return "is required" + _choices_of(model, error["loc"])
    if error["type"] == "literal_error":
        return _not_a_choice(error["ctx"]["expected"], error["input"])
    if words is None:
        return f"is wrong ({error['msg']}), here {given}"
    text = words(error.get("ctx", {}))
    return text if error["type"] == "value_error" else f"{text}, not {given}"


WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "value_error": lambda about: str(about["error"]),
    "greater_than": lambda about: f"must be more than {about['gt']:g}",
    "greater_than_equal": lambda about: f"must be at least {about['ge']:g}",
    "less_than": lambda about: f"must be less than {about['lt']:g}",
    "less_than_equal": lambda about: f"must be at most {about['le']:g}",
    **dict.fromkeys(
        ("int_parsing", "int_type", "int_from_float", "int_parsing_size"),
        lambda about: "must be a whole number",
    ),
    **dict.fromkeys(("float_parsing", "float_type"), lambda about: "must be a number"),
    "finite_number": lambda about: "must be a finite number",
    **dict.fromkeys(("bool_parsing", "bool_type"), lambda about: "must be true or false"),
    "string_type": lambda about: "must be a text",
    "string_too_short": lambda about: "must be a text with at least one character",
    "too_short": lambda about: f"must have at least {about['min_length']} values",
    "too_long": lambda about: f"must have at most {about['max_length']} values",
    **dict.fromkeys(("tuple_type", "list_type"), lambda about: "must be a list"),
    **dict.fromkeys(("model_type", "dict_type"), lambda about: "must be an object in braces"),
}


def _shown(value: Any) -> str:
    return _cut(json.dumps(value, default=str, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def _unknown(place: tuple[int | str, ...], model: type[BaseModel], known: Iterable[str]) -> str:
    """Name the nearest key, or that of another trainer if hardly a letter differs."""
    name, ours = str(place[-1]), _model_at(model, place[:-1]).model_fields
    theirs = nearest(name, known, alike=NEARLY_EQUAL) if len(place) == 1 else None
    if theirs and not nearest(name, ours, alike=NEARLY_EQUAL):
        return f"is not a known key; did you mean `{theirs}`, which has no effect here?"
    return "is not a known key" + did_you_mean(name, ours)


def _model_at(model: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model of the object at `place` inside of `model`."""
    for step in place:
        kind = model.model_fields[str(step)].annotation
        model = next(part for part in (kind, *get_args(kind)) if is_model(part))
    return model


def is_model(kind: Any) -> bool:
    """Return whether the type of a field is an object with keys of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _choices_of(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    fields = _model_at(model, place[:-1]).model_fields
    choices = get_args(fields[str(place[-1])].annotation)
    return ": one of " + ", ".join(map(str, choices)) if choices else ""


def _not_a_choice(expected: str, given: Any) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    wanted = choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    return f"must be {wanted}, not {_shown(given)}{did_you_mean(str(given), choices)}"
