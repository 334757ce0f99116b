"""Tests of `pair` lay out their pictures in a working directory of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def start_there(in_own_folder: None) -> None:
    """Nothing but `in_own_folder`, for every test here."""
