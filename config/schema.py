"""The JSON Schemas of both files, by which an editor explains, completes and checks them."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from .key_table import FILES, every_key
from .reading import CONFIG_NAME, DATA_NAME
from .remarks import SCHEMA_KEY, known_elsewhere

SCHEMA_NAMES = {name: f"{PurePath(name).stem}.schema.json" for name in (CONFIG_NAME, DATA_NAME)}
# What else is accepted for a type: texts that say a number or a truth, numbers as texts.
_NUMBER = r"^\s*[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_TRUTH = "^([Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|[Nn]o|[Oo]n|[Oo]ff|[TtFfYyNn01])$"
_ACCEPTED: dict[str, dict[str, Any]] = {
    "integer": {"type": ["integer", "string"], "pattern": _NUMBER},
    "number": {"type": ["number", "string"], "pattern": _NUMBER},
    "boolean": {"type": ["boolean", "string", "integer"], "pattern": _TRUTH},
    "string": {"type": ["string", "number"]},
}


def schema_of(file: str) -> dict[str, Any]:
    """Return the JSON Schema of config.json or of the data file.

    It accepts what qedit accepts, and the keys of SimpleTuner that have no effect here.
    """
    model = FILES[file]
    schema: dict[str, Any] = _widened(model.model_json_schema())
    for key in every_key():
        if key.file == file and (node := schema["properties"].get(key.name)):
            node["description"] = (
                f"{' '.join(node.get('description', '').split())} A change costs {key.change}."
            )
    others = "|".join(map(re.escape, sorted(known_elsewhere(model))))
    without_effect = {"description": "A key of SimpleTuner without effect.", "deprecated": True}
    schema["patternProperties"] = {f"^({others})$": without_effect}
    dialect = {SCHEMA_KEY: GenerateJsonSchema.schema_dialect}
    if file == CONFIG_NAME:
        schema["properties"][SCHEMA_KEY] = {"type": "string"}
        return {**dialect, **schema}
    del schema["$defs"]["CaptionTable"]["additionalProperties"]  # SimpleTuner's have more columns
    return {**dialect, "$defs": schema.pop("$defs"), "type": "array", "items": schema}


def _widened(node: Any) -> Any:
    """Return the schema `node` with what is accepted beside the types that it names."""
    if isinstance(node, list):
        return [_widened(one) for one in node]
    if not isinstance(node, dict):
        return node
    node = {name: _widened(value) for name, value in node.items() if name != "title"}
    closed = node.keys() & {"enum", "const", "format", "pattern"}
    kind = node.get("type")
    return node | _ACCEPTED.get(kind, {}) if isinstance(kind, str) and not closed else node
