"""The process that the crash tests fork their children from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash_server import CrashServer


@pytest.fixture(scope="session")
def server() -> Iterator[CrashServer]:
    with CrashServer() as started:
        yield started
