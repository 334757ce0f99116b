"""A process that holds the encoders in memory, and forks children that die in commands.

To import them takes seconds, to fork what has imported them milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crashing import Death, Hook

from qedit.cache.files import atomic


class CrashServer:
    """Runs commands in children; `folder` is what their changes are counted in."""

    def __enter__(self) -> CrashServer:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(
        self, words: Sequence[str], folder: Path, *, death: Death | None = None
    ) -> tuple[int, str, list[str]]:
        """The exit code of one command, what it said, and its changes if it lived."""
        said, changes = folder / "said.txt", folder / "changes.json"
        task = {
            "words": list(words),
            "folder": str(folder / "caches"),
            "death": asdict(death) if death else None,
            "said": str(said),
            "changes": str(changes),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        code = json.loads(self._process.stdout.readline())
        found = json.loads(changes.read_text()) if code >= 0 else []
        return code, said.read_text(), found


def words_in(folder: Path, *words: str) -> list[str]:
    """A command line on the run in `folder`, with its caches there."""
    files = ["--config", "config.json", "--data", "data.json", "-C", str(folder)]
    return [*words, *files, "--set", f"cache_dir={folder / 'caches'}", "--json"]


def serve() -> None:
    """Fork a child for every line of standard input, and say how it ended."""
    import torch

    import qedit.stages.cache_embeds.encoding
    import qedit.stages.cache_vae.encoding  # noqa: F401
    from qedit.pipeline.cli import main
    from qedit.stages.models.checkpoint import digests

    torch.set_num_threads(1)
    # digests of files that changed a moment ago are not remembered: then a command would make
    # more changes or fewer by how soon after its folder was laid out it runs
    digests.SETTLED_SECONDS = -3600.0
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _live(main, **json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _live(main: Any, *, words: list[str], folder: str, death: Any, said: str, changes: str) -> None:
    out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    hook = Hook(Path(folder), Death(**death) if death else None)
    if death and death["way"] == "half":
        atomic._open_new = hook.opener(atomic._open_new)
    sys.addaudithook(hook)
    code = 0
    try:
        main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    hook.is_over = True
    Path(changes).write_text(json.dumps(hook.changes))
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
