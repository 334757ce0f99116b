"""Runs that upkeep finds in caches: one whose rows were made up, and one of two that share."""

from __future__ import annotations

from pathlib import Path

import pytest
from filled_run import fill, made_configuration
from small_run import cache_rows, enter_copy, loaded, with_files
from training import SAMPLES

from qedit.stages.stores.pins import record_file
from qedit.stages.stores.run import Run


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, in which nothing may be changed; nothing is kept of its base."""
    folder = tmp_path_factory.mktemp("filled")
    fill(made_configuration(folder), SAMPLES)
    return folder


@pytest.fixture
def copy(cached_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in which this run has recorded what it needs."""
    folder = enter_copy(cached_run, tmp_path / "copy", monkeypatch)
    cache_rows()  # the pictures are other files
    return folder


@pytest.fixture
def other_record(copy: Path) -> Path:
    """What another run has recorded beside the store of tails, of which it wants all."""
    with_files("cache-embeds", "--set", "output_dir=out2")
    folder = Path("caches/text_embeds/edited")
    other = record_file(Run(loaded("output_dir=out2")), folder)
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("pair")
    return other
