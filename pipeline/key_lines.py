"""Keys of the two files in words for the terminal, and as JSON objects."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..cache.errors import WrongUse
from ..config.configuration import Configuration
from ..config.datasets import Dataset
from ..config.key_table import Key, every_key
from ..config.reading import CONFIG_NAME
from ..config.remarks import known_elsewhere, what_instead
from ..config.settings import Settings
from ..config.spelling import nearest

WIDTH = 100
INDENT = 11


def found_keys(word: str | None) -> tuple[Sequence[Key], str]:
    """Return the keys that `word` asks for, all without one, and a note where it is no key.

    Raises:
        WrongUse: no key is like it.
    """
    keys = every_key()
    if word is None:
        return keys, ""
    if found := [key for key in keys if key.name == word]:
        return found, ""
    found = [key for key in keys if word.lower() in f"{key.name} {key.meaning}".lower()]
    if word in known_elsewhere(Settings) | known_elsewhere(Dataset):
        return found, f"{word} is a key of SimpleTuner without effect here{what_instead(word)}."
    if found:
        return found, ""
    what = f"No key has {word!r} in its name or meaning"
    close = nearest(word, [key.name for key in keys])
    if close is None:
        raise WrongUse(f"{what}.", "Type `qedit keys` to list all.")
    return [key for key in keys if key.name == close], f"{what}; the nearest is {close}."


def values_in_effect(key: Key, configuration: Configuration) -> list[dict[str, Any]]:
    """Return the value of a key in config.json, or in each dataset in use, and its origin."""
    whole = configuration.as_dict()
    values = [(None, whole["settings"])]
    if key.file != CONFIG_NAME:
        values = [(entry["id"], entry) for entry in whole["datasets"]]
    found = []
    for dataset, value in values:
        for step in key.name.split("."):
            value = value and value[step]
        origin = configuration.origins.get((dataset, key.name), f"default{_follows(key)}")
        found.append({"dataset": dataset, "value": value, "from": origin})
    return found


def key_lines(key: Key, here: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Describe a key, and its values in effect, in lines of at most 100 columns."""
    yield f"{key.name}{f'{key.group}, {key.file}':>{WIDTH - len(key.name)}}"
    rows = [
        ("meaning", key.meaning),
        ("values", key.values),
        ("default", f"{key.default or 'none, it is required'}{_follows(key)}: {key.why}"),
        ("change", key.change),
    ]
    for found in here:
        where = f"{found['dataset']}: " if found["dataset"] else ""
        value = json.dumps(found["value"], ensure_ascii=False)
        rows.append(("here", f"{where}{value} ({found['from']})"))
    for title, text in rows:
        lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
        yield f"  {title:{INDENT - 2}}" + f"\n{' ' * INDENT}".join(lines)


def _follows(key: Key) -> str:
    return f", follows {' and '.join(key.follows)}" if key.follows else ""
