"""Finds the genuine tokenizer and configurations of the model, which are not in the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from paths import ROOT


def real_file(name: str) -> Path:
    """The file or folder `name` in QEDIT_REAL_FILES, else in shared/real-files beside the checkout.

    The test that asks is skipped where it is not there.
    """
    folder = Path(os.environ.get("QEDIT_REAL_FILES", ROOT.parent / "shared" / "real-files"))
    if not (folder / name).exists():
        pytest.skip(f"{name} of the real model is not in {folder} (QEDIT_REAL_FILES names another)")
    return folder / name
