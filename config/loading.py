"""Reads and checks both files: the result is one configuration, or all mistakes at once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from .configuration import Configuration
from .mistakes import Mistake
from .overrides import Change, read_sets
from .parsing import Draft
from .reading import CONFIG_NAME, DATA_NAME, example_folder, read_json

__all__ = ["Configuration", "load"]


def load(
    config: Path | None,
    data: Path | None,
    *,
    sets: Sequence[str] = (),
    example: str | None = None,
) -> Configuration:
    """Read the configuration that a command was given.

    Args:
        config: config.json; None with an example.
        data: multidatabackend.json; it wins over `data_backend_config` and over the example's.
        sets: `key=value` and `data.<dataset id>.<key>=value`, which win over both files.
        example: name of a shipped pair of files.

    Raises:
        WrongUse: with every mistake in the files and in `sets`, one a line.
    """
    draft = Draft()
    changes = read_sets(sets, draft.mistakes)
    shipped = _shipped(config, example, draft)
    raw = _settings_of(config, shipped, draft, changes=changes)
    data_file = _data_file(data, shipped, raw, draft=draft)
    if data_file is not None:
        _read_datasets(data_file, draft, changes=changes, config=config)
    return draft.configuration()


def _shipped(config: Path | None, example: str | None, draft: Draft) -> Traversable | None:
    """Return the folder of the example, if one is asked for."""
    if example is None:
        return None
    if config is not None:
        draft.mistakes.append(
            Mistake(f"example={example}", f"and --config {config} are both given; keep one")
        )
    folder = example_folder(example)
    if isinstance(folder, Mistake):
        draft.mistakes.append(folder)
        return None
    return folder


def _settings_of(
    config: Path | None, shipped: Traversable | None, draft: Draft, *, changes: Sequence[Change]
) -> dict[str, Any]:
    """Read config.json with its `--set` into the draft, and return its values."""
    file, label = config or shipped, str(config)
    if config is None and shipped is not None:
        file, label = shipped / CONFIG_NAME, f"{shipped.name}/{CONFIG_NAME}"
    if file is None:
        if not draft.mistakes:
            text = "none is given; name it with --config FILE, or try example=NAME"
            draft.mistakes.append(Mistake(CONFIG_NAME, text))
        return {}
    raw: dict[str, Any] | Mistake = read_json(file, label, dict)
    if isinstance(raw, Mistake):
        draft.mistakes.append(raw)
        return {}
    draft.change_settings(raw, changes)
    draft.read_settings(raw, label)
    return raw


def _data_file(
    data: Path | None, shipped: Traversable | None, raw: dict[str, Any], *, draft: Draft
) -> tuple[Traversable, str] | None:
    """Return multidatabackend.json, and its name for the user."""
    if data is not None:
        return data, str(data)
    if shipped is not None:
        return shipped / DATA_NAME, f"{shipped.name}/{DATA_NAME}"
    if draft.settings is None:
        return None  # without config.json nobody can say where the second file is
    named = draft.settings.data_backend_config
    if named is not None:
        return named, str(named)
    if "data_backend_config" not in raw:
        text = "is not given and neither is --data FILE; name the second file in one of them"
        draft.wrong_setting("data_backend_config", text)
    return None


def _read_datasets(
    data_file: tuple[Traversable, str],
    draft: Draft,
    *,
    changes: Sequence[Change],
    config: Path | None,
) -> None:
    file, label = data_file
    raw = read_json(file, label, list, beside=config)
    if isinstance(raw, Mistake):
        draft.mistakes.append(raw)
    else:
        draft.change_datasets(raw, changes)
        draft.read_datasets(raw, label)
        draft.check_links()
