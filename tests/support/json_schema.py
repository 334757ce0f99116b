"""A small judge of JSON Schemas: the keywords that qedit's own schemas have, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

TELLING = {"$schema", "$defs", "title", "description", "default", "deprecated", "format"}
WITH_PROPERTIES = {"additionalProperties", "patternProperties"}
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, KINDS[kind])


HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, asked: any(
        _is(value, kind) for kind in ([asked] if isinstance(asked, str) else asked)
    ),
    "enum": lambda value, asked: value in asked,
    "const": lambda value, asked: bool(value == asked),
    "required": lambda value, asked: not isinstance(value, dict) or set(asked) <= value.keys(),
    "pattern": lambda value, asked: not isinstance(value, str) or bool(re.search(asked, value)),
    "minLength": lambda value, asked: not isinstance(value, str) or len(value) >= asked,
    "minimum": lambda value, asked: not _is_number(value) or value >= asked,
    "exclusiveMinimum": lambda value, asked: not _is_number(value) or value > asked,
    "maximum": lambda value, asked: not _is_number(value) or value <= asked,
    "exclusiveMaximum": lambda value, asked: not _is_number(value) or value < asked,
}


def wrongs(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with `value`, as paths and keywords; [] where it is valid."""
    return list(_wrongs(value, schema, schema, "$"))


def _wrongs(value: Any, node: Any, root: Mapping[str, Any], path: str) -> Iterator[str]:
    for keyword in node.keys() - TELLING - WITH_PROPERTIES:
        asked = node[keyword]
        if keyword == "$ref":
            yield from _wrongs(value, root["$defs"][asked.removeprefix("#/$defs/")], root, path)
        elif keyword == "properties":
            yield from _in_object(value, node, root, path)
        elif keyword == "items":
            for place, item in enumerate(value if isinstance(value, list) else ()):
                yield from _wrongs(item, asked, root, f"{path}[{place}]")
        elif keyword == "anyOf":
            if all(any(_wrongs(value, one, root, path)) for one in asked):
                yield f"{path} anyOf"
        elif not HOLDS[keyword](value, asked):
            yield f"{path} {keyword}"


def _in_object(value: Any, node: Any, root: Mapping[str, Any], path: str) -> Iterator[str]:
    patterns = node.get("patternProperties", {})
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name in node["properties"]:
            yield from _wrongs(inner, node["properties"][name], root, f"{path}.{name}")
        elif node.get("additionalProperties") is False and not any(
            re.search(pattern, name) for pattern in patterns
        ):
            yield f"{path}.{name} additionalProperties"
