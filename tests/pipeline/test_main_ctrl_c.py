"""Ctrl-C while the code of a command is still being imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# presses Ctrl-C when the commands are imported
PRESSED = """
import importlib.abc, os, runpy, signal, sys
class Pressing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "qedit.pipeline.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressing())
{before}
sys.argv = ["qedit", "--version"]
runpy.run_module("qedit.pipeline", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("before", "exit_code", "said"),
    [
        ("", -signal.SIGINT, ""),
        # as in the background of a shell script
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0, "qedit "),
    ],
)
def test_it_ends_without_a_word_unless_ctrl_c_is_ignored(
    before: str, exit_code: int, said: str
) -> None:
    script = PRESSED.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (exit_code, "")
    assert done.stdout.startswith(said)
