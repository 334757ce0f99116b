"""Fixtures that tests of several rooms share.

They import what they need when they are asked for it, so that tests of `cache` and `config` start
without torch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qedit.config.configuration import Configuration

# no test may look for a model hub, and two workers share two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


# a shell has what it runs in the background ignore Ctrl-C, nohup the end of the terminal, and so
# would every process that a test starts and sends them to
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's folder is the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Configuration]:
    """A function that gives a filled run with any settings, its output in `tmp_path`."""
    from training import made_runs

    return made_runs(tmp_path, tmp_path_factory)


@pytest.fixture(scope="session")
def cached_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs with one reference each, encoded; in its folder nothing may be changed."""
    from small_run import cache_rows, make_run

    folder = make_run(tmp_path_factory.mktemp("cached"), flavour="edit-v2")
    with chdir(folder):
        cache_rows()
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew", action="store_true", help="write golden files anew")
    parser.addoption("--mutations", default="0:1000", help="seeds of test_mutations: FIRST:LAST")
