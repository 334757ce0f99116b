"""Forks the process that makes pictures beside the training: to import what it needs takes seconds.

The training has threads of its own, which a fork would lose in the middle of their work. So the
process that forks is itself forked before the training starts, and is told what to run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qedit.stages.train.evaluation import preview_process


def fork_previews(main: Any, seen: Path) -> None:
    """Have `qedit preview` forked from here; `main` runs a command in this process.

    Args:
        seen: where the names of modules that had to be imported are noted.
    """
    tasks, codes = os.pipe(), os.pipe()
    forker = os.fork()
    if forker == 0:
        os.close(tasks[1])
        _fork_all(main, seen, os.fdopen(tasks[0]), codes[1])
    os.close(tasks[0])
    os.close(codes[1])
    ask, answer = os.fdopen(tasks[1], "w"), os.fdopen(codes[0])

    class Popen:
        """What `preview_process` uses of `subprocess.Popen`; to poll it is to wait for it."""

        returncode: int | None = None
        pid = forker

        def __init__(self, command: list[str], *, stdout: Any, **_: Any) -> None:
            words = command[command.index("qedit.pipeline") + 1 :]
            line = [os.getcwd(), stdout.name, *words]
            print("\t".join(line), file=ask, flush=True)

        def wait(self) -> int:
            if self.returncode is None:
                self.returncode = int(answer.readline() or 1)
            return self.returncode

        poll = wait

    preview_process.NICE = os.nice(0)  # who waits for it would starve on a busy machine
    preview_process.subprocess = SimpleNamespace(Popen=Popen, DEVNULL=None)  # type: ignore[attr-defined]


def note_modules(seen: Path, known: set[str]) -> None:
    """Append the names of the modules that were imported since `known` was taken."""
    with seen.open("a") as file:
        file.writelines(name + "\n" for name in sorted(set(sys.modules) - known))


def _fork_all(main: Any, seen: Path, tasks: Any, codes: int) -> None:
    for line in tasks:
        folder, log, *words = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            _run(main, seen, log, words)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(codes, f"{code}\n".encode())
    os._exit(0)


def _run(main: Any, seen: Path, log: str, words: list[str]) -> None:
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    known, code = set(sys.modules), 0
    try:
        main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    note_modules(seen, known)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
