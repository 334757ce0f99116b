"""A run of which nothing is encoded yet, and the rows that it gets."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from cached_rows import PLAIN, rows_here
from small_run import enter_copy, make_run, with_files


@pytest.fixture(scope="session")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs with two references each, and two captions for the first."""
    folder = make_run(
        tmp_path_factory.mktemp("paired"), flavour="edit-v2", references=2, max_train_steps=1
    )
    (folder / "edited" / "p0.txt").write_text("make it number 0\nand a second caption\n")
    with chdir(folder):
        with_files("pair")
    return folder


@pytest.fixture
def here(paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_copy(paired, tmp_path / "here", monkeypatch)


@pytest.fixture(scope="session")
def one_by_one(paired: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Every row, each encoded by itself."""
    folder = tmp_path_factory.mktemp("one-by-one") / "run"
    shutil.copytree(paired, folder)
    with chdir(folder):
        with_files("cache-vae", *PLAIN[0], "--workers", "1")
        with_files("cache-embeds", *PLAIN[1], "--workers", "1")
        return rows_here()
