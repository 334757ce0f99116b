"""Keys of the two files in words for the terminal, and as JSON objects."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
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
    found = [key for key in keys if key.name == word]
    found = found or [key for key in keys if word.lower() in f"{key.name} {key.meaning}".lower()]
    if word in known_elsewhere(Settings) | known_elsewhere(Dataset):
        return found, f"{word} is a key of SimpleTuner without effect here{what_instead(word)}."
    close = nearest(word, [key.name for key in keys])
    if not found and close is None:
        raise WrongUse(
            f"No key has {word!r} in its name or meaning.", "Type `qedit keys` to list all."
        )
    if not found:
        near = [key for key in keys if key.name == close]
        return near, f"No key has {word!r} in its name or meaning; the nearest is {close}."
    return found, ""


def key_lines(key: Key, configuration: Configuration | None) -> Iterator[str]:
    """Describe a key in lines of at most 100 columns, with its value in effect."""
    yield f"{key.name}{f'{key.group}, {key.file}':>{WIDTH - len(key.name)}}"
    follows = f", follows {' and '.join(key.follows)}" if key.follows else ""
    rows = [
        ("meaning", key.meaning),
        ("values", key.values),
        ("default", f"{key.default or 'none, it is required'}{follows}: {key.why}"),
        ("change", key.change),
    ]
    for dataset, value, origin in _in_effect(key, configuration):
        where = f"{dataset}: " if dataset else ""
        rows.append(("here", f"{where}{json.dumps(value, ensure_ascii=False)} ({origin})"))
    for title, text in rows:
        lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
        yield f"  {title:{INDENT - 2}}" + f"\n{' ' * INDENT}".join(lines)


def key_object(key: Key, configuration: Configuration | None) -> dict[str, Any]:
    """Return what `--json` says of a key."""
    here = [
        {"dataset": dataset, "value": value, "from": origin}
        for dataset, value, origin in _in_effect(key, configuration)
    ]
    return {**asdict(key), **({"here": here} if configuration else {})}


def _in_effect(
    key: Key, configuration: Configuration | None
) -> Iterator[tuple[str | None, Any, str]]:
    """Give dataset, value and origin of a key in config.json, or in each dataset that is used."""
    if configuration is None:
        return
    whole = configuration.as_dict()
    entries = [(None, whole["settings"])]
    if key.file != CONFIG_NAME:
        entries = [(entry["id"], entry) for entry in whole["datasets"]]
    by_default = f"default, follows {' and '.join(key.follows)}" if key.follows else "default"
    for dataset, value in entries:
        for step in key.name.split("."):
            value = value and value[step]
        yield dataset, value, configuration.origins.get((dataset, key.name), by_default)
