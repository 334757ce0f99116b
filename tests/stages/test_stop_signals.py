"""Which signals stop a command, with which exit status, and what a second one does."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from qedit.stages.stop_signals import Stopped, exit_code_of

# sends itself signals after it has begun to handle them; tells what it does
COMMAND = """
import signal, sys, time
from qedit.stages import stop_signals
{before}
stop_signals.handle_signals(stop_signals.stop)
try:
    signal.raise_signal(signal.{first})
    time.sleep(0.01)
    print("went on", flush=True)
except KeyboardInterrupt as error:
    print("cleans up", flush=True)
    {cleans}
    sys.exit(stop_signals.exit_code_of(error))
"""


def _run(first: str, *, before: str = "", cleans: str = "pass") -> tuple[int, str, str]:
    script = COMMAND.format(first=first, before=before, cleans=cleans)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_the_exit_status_names_the_signal() -> None:
    stopped = [Stopped(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert [exit_code_of(error) for error in stopped] == [130, 143, 129]
    assert exit_code_of(KeyboardInterrupt()) == 130


@pytest.mark.parametrize(("first", "exit_code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_first_lets_the_command_clean_up(first: str, exit_code: int) -> None:
    assert _run(first) == (exit_code, "cleans up", "")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_of_any_kind_ends_it_at_once(second: signal.Signals) -> None:
    cleans = f"signal.raise_signal({int(second)}); print('cleaned up')"
    assert _run("SIGHUP", cleans=cleans) == (-second, "cleans up", "")


def test_a_terminal_and_its_shell_may_both_say_that_they_close() -> None:
    cleans = "signal.raise_signal(signal.SIGHUP); print('cleaned up')"
    assert _run("SIGHUP", cleans=cleans) == (129, "cleans up\ncleaned up", "")
    cleans = f"time.sleep(1.1); {cleans}"
    assert _run("SIGHUP", cleans=cleans) == (-signal.SIGHUP, "cleans up", "")


def test_what_was_ignored_stays_ignored() -> None:
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert _run("SIGHUP", before=before) == (0, "went on", "")
    cleans = "signal.raise_signal(signal.SIGHUP); print('cleaned up')"
    assert _run("SIGTERM", before=before, cleans=cleans) == (143, "cleans up\ncleaned up", "")
