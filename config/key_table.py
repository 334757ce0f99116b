"""Every key of both files in words, from the types and the texts in the classes of the files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from .datasets import Dataset
from .mistakes import is_model
from .reading import CONFIG_NAME, DATA_NAME
from .settings import Settings
from .value_types import Written

FILES: Mapping[str, type[Written]] = {CONFIG_NAME: Settings, DATA_NAME: Dataset}
_KINDS = {"boolean": "true or false", "integer": "whole number", "path": "path", "string": "text"}
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "to below",
}
_LARGEST_NAMED = 10**6  # no user comes near a bound beyond it


@dataclass(frozen=True)
class Key:
    """One key, in words.

    Attributes:
        name: with dots between the keys of nested objects.
        values: what may be written, and its unit.
        default: as JSON, where nothing else is set; None: the key is required.
        follows: the keys that the default follows.
        change: what a change does at most; only rows whose content changes are made again.
    """

    file: str
    group: str
    name: str
    meaning: str
    values: str
    default: str | None
    follows: tuple[str, ...]
    why: str
    change: str


@cache
def every_key() -> tuple[Key, ...]:
    """Return the keys of both files, group by group."""
    return tuple(
        key
        for file, model in FILES.items()
        for group in reversed(model.__bases__)
        for key in _keys_of(group, file, _title(group))
    )


def _title(group: type) -> str:
    return re.sub(r"(?<=.)[A-Z](?=[a-z])", lambda found: f" {found[0].lower()}", group.__name__)


@cache
def _changes() -> Any:
    """Return file -> key -> what a change does, as tests/promises/test_key_effects.py found it."""
    return json.loads((files("qedit.config") / "changes.json").read_text(encoding="utf-8"))


def _keys_of(model: type[BaseModel], file: str, group: str, *, prefix: str = "") -> Iterator[Key]:
    schema, shown = model.model_json_schema(), set[Any]()
    for name, field in model.model_fields.items():
        node = schema["properties"][name]
        # the text under a field: its meaning, then perhaps its unit, then why its default
        text, _, why = " ".join((field.description or "").split()).partition(" Why: ")
        meaning, _, unit = text.partition(" Unit: ")
        values = _in_words(node, schema.get("$defs", {}))
        values += f" ({unit.rstrip('.')})" if unit else ""
        default, follows = _default_of(field, node)
        change = _changes()[file].get(prefix + name, "")
        yield Key(file, group, prefix + name, meaning, values, default, follows, why, change)
        for inner in {field.annotation, *get_args(field.annotation)} - shown:
            if is_model(inner):
                shown.add(inner)  # of three tables of captions the first shows their keys
                yield from _keys_of(inner, file, group, prefix=f"{name}.")


class _Asked(dict[str, Any]):
    """An object without values, that has the keys it was asked for."""

    def get(self, key: str, default: Any = None) -> Any:
        self[key] = default
        return default


def _default_of(field: FieldInfo, node: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return the default as JSON, and the keys that it follows."""
    if field.is_required():
        return None, ()
    asked = _Asked()
    value = node.get("default")
    if field.default_factory is not None:
        made = field.get_default(call_default_factory=True, validated_data=asked)
        value = to_jsonable_python(made)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value), tuple(asked)


def _in_words(node: Mapping[str, Any], objects: Mapping[str, Any]) -> str:
    """Say what a node of a JSON Schema accepts."""
    if "$ref" in node:
        return "object of " + ", ".join(objects[node["$ref"].rpartition("/")[2]]["properties"])
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return ", ".join(map(str, choices))
    if "anyOf" in node:
        return " or ".join(
            _in_words(one, objects) + (f" ({one['description']})" if "description" in one else "")
            for one in node["anyOf"]
        )
    if node["type"] == "array":
        return f"list of {_in_words(node['items'], objects)}"
    kind: str = node.get("format", node["type"])
    bounds = (
        f" {word} {node[bound]:g}"
        for bound, word in _BOUNDS.items()
        if node.get(bound, _LARGEST_NAMED) < _LARGEST_NAMED
    )
    return _KINDS.get(kind, kind) + "".join(bounds)
