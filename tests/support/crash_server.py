"""A process that holds the encoders in memory, and forks children that die in commands.

To import them takes seconds, to fork what has imported them milliseconds.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crashing import Death, Hook
from forked_previews import fork_previews, note_modules

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
        self,
        words: Sequence[str],
        folder: Path,
        *,
        death: Death | None = None,
        watched: str = "caches",
        seconds: int = 600,
        notes: Path | None = None,
        restored: bool = False,
    ) -> tuple[int, str, list[str]]:
        """The exit code of one command, what it said, and its changes if it lived.

        Args:
            watched: the folder in `folder` whose changes are counted.
            seconds: after so long the command is ended.
            notes: where what it said and changed is written; else that is `folder`.
            restored: files look as if their status had last changed with their content, as if
                the folder had always been there; a copy cannot have that time. Nothing is synced.
        """
        said, changes = (notes or folder) / "said.txt", (notes or folder) / "changes.json"
        task = {
            "words": list(words),
            "folder": str(folder / watched),
            "death": asdict(death) if death else None,
            "said": str(said),
            "changes": str(changes),
            "seconds": seconds,
            "restored": restored,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        code = json.loads(self._process.stdout.readline())
        found = json.loads(changes.read_text()) if code >= 0 else []
        return code, said.read_text(encoding="utf-8", errors="backslashreplace"), found


def words_in(folder: Path, *words: str) -> list[str]:
    """A command line on the run in `folder`, with its caches there."""
    files = ["--config", "config.json", "--data", "data.json", "-C", str(folder)]
    return [*words, *files, "--set", f"cache_dir={folder / 'caches'}", "--json"]


def serve() -> None:
    """Fork a child for every line of standard input, and say how it ended."""
    import torch

    import qedit.pipeline.upkeep.status
    import qedit.stages.cache_base.stage
    import qedit.stages.cache_embeds.stage
    import qedit.stages.cache_vae.stage
    import qedit.stages.pair.stage
    import qedit.stages.preview.stage
    import qedit.stages.train.loop  # noqa: F401
    from qedit.pipeline.cli import main
    from qedit.stages.models.checkpoint import digests

    torch.set_num_threads(1)
    # digests of files that changed a moment ago are not remembered: then a command would make
    # more changes or fewer by how soon after its folder was laid out it runs
    digests.SETTLED_SECONDS = -3600.0
    gc.freeze()
    seen = Path(tempfile.mkstemp()[1])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            _live(main, seen, **json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):  # those that it has forked
            os.killpg(child, signal.SIGKILL)
        print(code, flush=True)
        _import_all(seen)
    seen.unlink()


def _import_all(seen: Path) -> None:
    """Import what a child had to import, so that the next one need not."""
    for name in seen.read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # a child's collections then touch, and so copy, none of these pages
    seen.write_text("")


def _live(
    main: Any,
    seen: Path,
    *,
    words: list[str],
    folder: str,
    death: Any,
    said: str,
    changes: str,
    seconds: int,
    restored: bool,
) -> None:
    out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.alarm(seconds)
    known = set(sys.modules)
    if restored:
        os.fsync = lambda handle: None  # no power failure is tried with these folders
    with one_time() if restored else contextlib.nullcontext():
        if words[0] in ("train", "run"):
            fork_previews(main, seen)
        hook = Hook(Path(folder), Death(**death) if death else None)
        if death and death["way"] == "half":
            atomic._open_new = hook.opener(atomic._open_new)
        sys.addaudithook(hook)
        code = _code_of(main, words)
    hook.is_over = True
    Path(changes).write_text(json.dumps(hook.changes))
    note_modules(seen, known)
    _end(code)


@contextlib.contextmanager
def one_time() -> Iterator[None]:
    """Have `Path.stat` give the time of the last change of the content for that of the status."""
    really = Path.stat

    def stat(self: Path, **options: Any) -> os.stat_result:
        found = really(self, **options)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return os.stat_result(found, {**fields, "st_ctime_ns": found.st_mtime_ns})

    Path.stat = stat  # type: ignore[method-assign]
    try:
        yield
    finally:
        Path.stat = really  # type: ignore[method-assign]


def _code_of(main: Any, words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
