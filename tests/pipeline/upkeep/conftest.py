"""A run whose rows were made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from filled_run import fill, made_configuration
from training import SAMPLES


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, in which nothing may be changed; nothing is kept of its base."""
    folder = tmp_path_factory.mktemp("filled")
    fill(made_configuration(folder), SAMPLES)
    return folder
