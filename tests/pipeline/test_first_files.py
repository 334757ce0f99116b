"""qedit init writes a JSON Schema of each file, and config.json names its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from json_schema import wrongs
from picture_pairs import pairs
from small_run import qedit

from qedit.config.comments import parse
from qedit.config.loading import load
from qedit.config.schema import schema_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pairs of pictures, as the working directory."""
    monkeypatch.chdir(tmp_path)
    pairs(2)
    return tmp_path


def test_the_schemas_lie_beside_the_files_and_fit_them(here: Path) -> None:
    result = qedit("init", "targets", "before")
    assert "JSON Schema" in result.stdout
    for name in ("config.json", "multidatabackend.json"):
        schema_name = name.replace(".json", ".schema.json")
        schema = json.loads((here / schema_name).read_text(encoding="utf-8"))
        assert schema == schema_of(name)
        assert wrongs(parse((here / name).read_text(encoding="utf-8")), schema) == []


def test_config_json_names_its_schema_and_is_read_without_it(here: Path) -> None:
    qedit("init", "targets", "before")
    config = parse((here / "config.json").read_text(encoding="utf-8"))
    assert (here / config["$schema"]).is_file()
    configuration = load(here / "config.json", None)
    assert configuration.notes == ()
    assert "$schema" not in configuration.as_dict()["settings"]


def test_a_schema_of_before_is_renewed_and_a_dry_run_writes_none(here: Path) -> None:
    qedit("init", "targets", "before", "-n")
    assert not list(here.glob("*.json"))
    (here / "config.schema.json").write_text("{}")
    qedit("init", "targets", "before")
    assert json.loads((here / "config.schema.json").read_text()) == schema_of("config.json")


def test_schema_is_no_field_of_a_dataset(here: Path) -> None:
    qedit("init", "targets", "before")
    said = qedit("pair", "--config", "config.json", "--set", "data.targets.$schema=x", expect=2)
    assert "`$schema` is not a" in said.stderr
