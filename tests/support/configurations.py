"""Writes small configurations, and gives the message about a wrong one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qedit.cache.errors import WrongUse
from qedit.config.loading import Configuration, load


def image(**fields: Any) -> dict[str, Any]:
    return {"id": "main", "instance_data_dir": "pictures", "conditioning_data": "ref", **fields}


def reference(**fields: Any) -> dict[str, Any]:
    return {"id": "ref", "dataset_type": "conditioning", "instance_data_dir": "refs", **fields}


def configured(
    folder: Path, settings: Mapping[str, Any], *datasets: Any, sets: tuple[str, ...] = ()
) -> Configuration:
    """Write both files, edit-v2 unless said otherwise, and read them."""
    (folder / "config.json").write_text(json.dumps({"model_flavour": "edit-v2", **settings}))
    (folder / "data.json").write_text(json.dumps(datasets or (image(), reference())))
    return load(folder / "config.json", folder / "data.json", sets=sets)


def complaint(folder: Path, settings: dict[str, Any], *datasets: Any, **more: Any) -> str:
    with pytest.raises(WrongUse) as caught:
        configured(folder, settings, *datasets, **more)
    assert "Nothing was started" in caught.value.do
    return caught.value.what.replace(f"{folder}/", "")


def only_line(what: str) -> str:
    heading, *lines = what.splitlines()
    assert heading == "The configuration has a mistake:"
    assert len(lines) == 1, lines
    return lines[0].strip()
