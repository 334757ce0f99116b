"""Ends a child process by SIGKILL at its n-th change of the disk, for any n.

`sys.addaudithook` sees every change Python makes: files opened for writing, renames, links,
removals, new folders. Because `cache/files/atomic.py` makes them all, nothing escapes. A work is a
function of a light module, imported once by the fork server: a child costs milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from qedit.cache.files import atomic
from qedit.cache.files.claims import alone_in, claimed_work
from qedit.cache.files.lock import writer_lock
from qedit.cache.store.dropping import drop
from qedit.cache.store.repacking import carry_out, plan_repacking
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}

# before: the change is not made. empty: the file exists, its bytes do not. half: half of them do.
WAYS = ("before", "empty", "half")


@dataclass(frozen=True)
class Death:
    """A child's end, at change number `at` (from 1) of what lies in the folder."""

    at: int
    way: str = "before"


def changes_of(work: Callable[..., None], folder: Path, *args: Any) -> list[str]:
    """The changes that `work(folder, *args)` makes in `folder` when nothing stops it, by name."""
    report = folder.with_name(folder.name + ".changes")
    assert _exit_code(work, folder, args, death=None, report=report) == 0
    return json.loads(report.read_text())


def deaths_in(changes: Sequence[str]) -> Iterator[Death]:
    """Every way to die at each of these changes."""
    for at, change in enumerate(changes, start=1):
        for way in WAYS if change == "open" else WAYS[:1]:
            yield Death(at, way)


def kill(work: Callable[..., None], folder: Path, *args: Any, death: Death) -> None:
    """Run `work(folder, *args)` in a child that dies this death."""
    assert _exit_code(work, folder, args, death=death) == -signal.SIGKILL


def _exit_code(
    work: Callable[..., None],
    folder: Path,
    args: tuple[Any, ...],
    *,
    death: Death | None,
    report: Path | None = None,
) -> int | None:
    context = multiprocessing.get_context("forkserver")
    # not "crashing" itself: before Python 3.13 the server does not look into the tests folder
    context.set_forkserver_preload(
        ["__main__", "qedit.cache.store.store", "qedit.stages.pair.stage"]
    )
    child = context.Process(target=_live, args=(work, folder, args, death, report))
    child.start()
    child.join()
    return child.exitcode


def _live(
    work: Callable[..., None],
    folder: Path,
    args: tuple[Any, ...],
    death: Death | None,
    report: Path | None,
) -> None:
    hook = Hook(folder, death)
    if death is not None and death.way == "half":
        atomic._open_new = hook.opener(atomic._open_new)
    sys.addaudithook(hook)
    work(folder, *args)
    if report is not None:
        report.write_text(json.dumps(hook.changes))


class Hook:
    """Counts the changes in a folder and dies at the appointed one."""

    def __init__(self, folder: Path, death: Death | None) -> None:
        self.folder, self.death = str(folder), death
        self.changes: list[str] = []
        self.is_over = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.is_over or not self._counts(event, args):
            return
        self.changes.append(event)
        if self.death is None or len(self.changes) < self.death.at:
            return
        self.is_over = True
        if self.death.way == "empty":
            os.close(os.open(args[0], os.O_CREAT | os.O_WRONLY))
        if self.death.way != "half":
            os.kill(os.getpid(), signal.SIGKILL)

    def opener(self, really: Callable[[Path], BinaryIO]) -> Callable[[Path], Any]:
        """`atomic._open_new`, but the file opened at the appointed time is the last one."""

        def open_new(path: Path) -> Any:
            file = really(path)
            return LastFile(file) if self.is_over else file

        return open_new

    def _counts(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            return isinstance(args[2], int) and bool(args[2] & WRITES) and self._is_here(args[0])
        # shutil.rmtree names files relative to an open folder
        return event in CHANGES and (self._is_here(args[0]) or not os.path.isabs(args[0]))

    def _is_here(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        return str(path) == self.folder or str(path).startswith(self.folder + os.sep)


class LastFile:
    """A file whose process dies in the middle of the first write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes | memoryview) -> int:
        self.file.write(bytes(data)[: len(bytes(data)) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def __enter__(self) -> LastFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


# The work of tests/promises/test_crash.py: it must be in a module that the children import quickly.

RECIPE = {"stage": "crash", "version": 1}
WANTED = [f"{number:032x}" for number in range(7)]
PART_ROWS = 3


def row_of(key: str, layout: Layout) -> np.ndarray:
    """The one and only row of `key`: what an encoder would make of it."""
    length = 4 + int(key, 16) % 3
    shape = (length * 3, 5) if layout.ragged else (2, 4, 4)
    return np.random.default_rng(int(key, 16)).integers(0, 2**16, shape, dtype=np.uint16)


def fill(folder: Path, ragged: bool, log: Path) -> None:
    """What a stage does: compute the missing rows, in batches; `log` gets what was computed."""
    layout = EMBEDS if ragged else LATENTS
    store = Store(folder, RECIPE, layout)
    with store.writing():
        missing = store.missing(WANTED)
        for begin in range(0, len(missing), PART_ROWS):
            keys = missing[begin : begin + PART_ROWS]
            with log.open("a") as file:
                file.writelines(key + "\n" for key in keys)
            store.add(keys, [row_of(key, layout) for key in keys])


def share(folder: Path, keys: Sequence[str], log: Path, seconds: float) -> None:
    """What a stage does beside others like it: compute what nobody else does."""
    store = Store(folder, RECIPE, LATENTS)

    def still(some: Sequence[str]) -> list[str]:
        store.refresh()
        return store.missing(some)

    batches = [keys[start : start + 6] for start in range(0, len(keys), 6)]
    with store.adding():
        for keys in shared_work(
            store.path, batches, doing="sharing", still=still, waiting=lambda holder: None
        ):
            with log.open("a") as file:
                file.write("".join(key + "\n" for key in keys))
            time.sleep(seconds)
            store.add(keys, [row_of(key, LATENTS) for key in keys])


def shared_work(
    folder: Path, batches: Iterable[Sequence[str]], **options: Any
) -> Iterator[list[str]]:
    """Yield the keys of one claimed task after another; each is released before the next."""
    for task in claimed_work(folder, batches, **options):
        if task is not None:
            try:
                yield task.keys
            finally:
                task.release()


def repack(folder: Path, ragged: bool) -> None:
    """What `gc` does: of what `fill` made, keep all but the first two rows, in few parts."""
    store = Store(folder, RECIPE, EMBEDS if ragged else LATENTS)
    with store.writing():
        carry_out(store, plan_repacking(store, pa.chunked_array([WANTED[2:]]), compact=True))


def drop_damaged(folder: Path) -> None:
    """What `verify --drop` does."""
    store = Store(folder, RECIPE, LATENTS)
    damages = store.verify()
    with alone_in([store.path], doing="verify --drop"):
        drop(store, damages)


def take_lock(folder: Path) -> None:
    """The work of tests/cache/files/test_lock.py."""
    with writer_lock(folder, doing="dying"):
        pass
