"""A checkpoint without real weights, of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare_checkpoints import make_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")
