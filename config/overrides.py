"""Reads `--set key=value` and `--set data.<dataset id>.<key>=value`, and applies them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..cache.errors import Broken
from ..cache.regular_file import json_in
from .mistakes import Mistake
from .spelling import did_you_mean

LONGEST_SHOWN = 200  # characters of what was typed
FOR_DATA = "data."


@dataclass(frozen=True)
class Change:
    """A `--set` as it was typed: the dotted key and the value."""

    key: str
    value: Any
    typed: str

    @property
    def label(self) -> str:
        """The words by which the user knows it."""
        return f"--set {self.typed[:LONGEST_SHOWN]}"

    @property
    def for_data(self) -> bool:
        """True if it is for the data file."""
        return self.key.startswith(FOR_DATA)


def read_sets(sets: Iterable[str], mistakes: list[Mistake]) -> list[Change]:
    """Read all `--set`; a value is JSON where it can be read so, and a text otherwise."""
    changes = []
    for typed in sets:
        key, equals, text = typed.partition("=")
        if equals and key.strip():
            changes.append(Change(key.strip(), _value(text), typed))
        else:
            mistakes.append(Mistake(f"--set {typed}", "must be written as key=value"))
    return changes


def _value(text: str) -> Any:
    try:
        return json_in(text)
    except (ValueError, Broken):
        return text


def put(into: dict[str, Any], dotted: str, change: Change) -> Mistake | None:
    """Set one value, making the objects on the way to it."""
    *way, last = dotted.split(".")
    for step in way:
        into = into.setdefault(step, {})
        if not isinstance(into, dict):
            return Mistake(change.label, f"is not possible: `{step}` is not an object")
    into[last] = change.value
    return None


def target_of(change: Change, ids: Iterable[str]) -> tuple[str, str] | Mistake:
    """Return the dataset id (the longest that fits) and the key that a change is for."""
    known = list(ids)
    rest = change.key.removeprefix(FOR_DATA)
    fitting = [name for name in known if rest.startswith(f"{name}.") and rest != f"{name}."]
    if fitting:
        longest = max(fitting, key=len)
        return longest, rest[len(longest) + 1 :]
    name, dot, _ = rest.rpartition(".")
    if not dot:
        return Mistake(change.label, "must be written as data.<dataset id>.<key>=value")
    hint = did_you_mean(name, known)
    return Mistake(change.label, f'there is no dataset of the id "{name}"{hint}')
