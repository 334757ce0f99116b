"""What every test shares."""

from __future__ import annotations

import os
import signal

import pytest

# no test may look for a model hub, and two workers share two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


# a shell has what it runs in the background ignore Ctrl-C, and so would every process that a
# test starts and presses it in
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew", action="store_true", help="write golden files anew")
