"""The folders of qedit's own source are never written to."""

from __future__ import annotations

from pathlib import Path

import pytest

import qedit
from qedit.cache.errors import WrongUse
from qedit.cache.files.workspace import refuse_source_folder


@pytest.mark.parametrize("room", ["cache", "config", "pipeline", "stages"])
def test_source_folders_are_never_written_to(tmp_path: Path, room: str) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "qedit"\n')
    for path in (tmp_path / room, tmp_path / room / "vae" / "a", tmp_path / "x" / ".." / room):
        with pytest.raises(WrongUse, match=room) as told:
            refuse_source_folder(path)
        assert "-C" in told.value.do
    refuse_source_folder(tmp_path / "work" / room)
    refuse_source_folder(tmp_path / f"{room}2")
    refuse_source_folder(tmp_path)


def test_folders_of_another_project_raise_nothing(tmp_path: Path) -> None:
    refuse_source_folder(tmp_path / "cache")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    refuse_source_folder(tmp_path / "cache")


def test_the_checkout_that_is_imported_is_protected() -> None:
    with pytest.raises(WrongUse):
        refuse_source_folder(Path(qedit.__file__ or "").parent / "cache")
