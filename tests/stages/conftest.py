"""A tiny checkpoint of edit-v2, for tests of the stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_checkpoints import opened

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.tiny.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, in which nothing may be changed."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "v2", "edit-v2")


@pytest.fixture(scope="session")
def checkpoint(tiny: Path) -> Checkpoint:
    return opened(tiny)


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copied"))
