"""Read both files, check them, and give back one configuration or all mistakes at once."""

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
    """Read the configuration a command was given.

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
    """The folder of the example, if one is asked for."""
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
    """The values of config.json with the `--set`; read into the draft as well."""
    if config is not None:
        raw = read_json(config, label := str(config), dict)
    elif shipped is not None:
        label = f"{shipped.name}/{CONFIG_NAME}"
        raw = read_json(shipped / CONFIG_NAME, label, dict)
    else:
        if not draft.mistakes:
            text = "none is given; name it with --config FILE, or try example=NAME"
            draft.mistakes.append(Mistake(CONFIG_NAME, text))
        return {}
    if isinstance(raw, Mistake):
        draft.mistakes.append(raw)
        return {}
    if not isinstance(raw, dict):
        draft.mistakes.append(Mistake(label, "must hold one object in braces"))
        return {}
    draft.change_settings(raw, changes)
    draft.read_settings(raw, label)
    return raw


def _data_file(
    data: Path | None, shipped: Traversable | None, raw: dict[str, Any], *, draft: Draft
) -> tuple[Traversable, str] | None:
    """multidatabackend.json and its name for the user."""
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
    elif not isinstance(raw, list):
        draft.mistakes.append(Mistake(label, "must hold one list of datasets in brackets"))
    else:
        draft.change_datasets(raw, changes)
        draft.read_datasets(raw, label)
        draft.check_links()
