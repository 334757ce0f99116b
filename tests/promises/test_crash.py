"""Whenever a writer ends: what is kept is right, and the rerun does the rest and no more."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crashing import RECIPE, WANTED, Death, changes_of, deaths_in, fill, kill, row_of
from failing_writes import Trouble, full_disk

from qedit.cache.errors import QeditError
from qedit.cache.store.store import EMBEDS, LATENTS, Store

LAYOUTS = pytest.mark.parametrize("ragged", [False, True], ids=["latents", "embeds"])


def _store(folder: Path, ragged: bool) -> Store:
    return Store(folder, RECIPE, EMBEDS if ragged else LATENTS)


def _assert_rows_are_right(store: Store) -> None:
    for key in sorted(store.keys()):
        assert np.array_equal(store.read(key), row_of(key, store.layout))


def _names(folder: Path) -> Counter[str]:
    return Counter(path.name for path in folder.rglob("*") if path.is_file())


def _rerun(folder: Path, ragged: bool) -> None:
    """Run again after an end and hold the result against an uninterrupted run's."""
    store, log = _store(folder, ragged), folder.with_name("log")
    _assert_rows_are_right(store)
    assert store.verify() == [], "what is unfinished is not damaged"
    kept = set(store.keys())
    log.write_text("")
    fill(folder, ragged, log)
    assert log.read_text().split() == [key for key in WANTED if key not in kept]
    again = _store(folder, ragged)
    assert again.keys() == set(WANTED)
    _assert_rows_are_right(again)
    assert again.verify() == []
    _assert_no_leftovers(again)


def _assert_no_leftovers(store: Store) -> None:
    parts = len(list(store.parts_folder.iterdir()))
    shard = "c.0.0" if store.layout.ragged else "c.0.0.0.0"
    each = dict.fromkeys(["manifest.json", "rows.parquet", "zarr.json", shard], parts)
    assert _names(store.path) == {"recipe.json": 1, **each}


def _survive(folder: Path, ragged: bool, deaths: list[Death]) -> None:
    for death in deaths:
        here = folder / f"{death.at}-{death.way}"
        kill(fill, here, ragged, folder / "log", death=death)
        _rerun(here, ragged)


@LAYOUTS
def test_killed_at_some_changes_of_the_disk(tmp_path: Path, ragged: bool) -> None:
    changes = changes_of(fill, tmp_path / "whole", ragged, tmp_path / "log")
    # at the least: a lock, a recipe, and for each of three parts four files and a rename
    assert changes.count("open") >= 14
    assert changes.count("os.rename") >= 4
    deaths = list(deaths_in(changes))
    _survive(tmp_path, ragged, deaths[2 * int(ragged) :: 5])


@pytest.mark.exhaustive
@LAYOUTS
def test_killed_at_every_change_of_the_disk(tmp_path: Path, ragged: bool) -> None:
    changes = changes_of(fill, tmp_path / "whole", ragged, tmp_path / "log")
    _survive(tmp_path, ragged, list(deaths_in(changes)))


@pytest.mark.parametrize(
    "every",
    [pytest.param(27, marks=pytest.mark.full), pytest.param(9, marks=pytest.mark.exhaustive)],
)
def test_killed_again_while_recovering(tmp_path: Path, every: int) -> None:
    log = tmp_path / "log"
    first = list(deaths_in(changes_of(fill, tmp_path / "whole", True, log)))
    for death in first[::every]:
        once = tmp_path / f"{death.at}-{death.way}"
        kill(fill, once, True, log, death=death)
        _survive_again(once, tmp_path / "again", first=death, every=every)


def _survive_again(died: Path, folder: Path, *, first: Death, every: int) -> None:
    """From what a first death left, die a second one in the recovery, at some changes of it."""
    whole = folder / f"{first.at}-{first.way}"
    _copy_tree(died, whole)
    log = folder / "log"
    for second in list(deaths_in(changes_of(fill, whole, True, log)))[::every]:
        twice = folder / f"{first.at}-{first.way}-{second.at}-{second.way}"
        _copy_tree(died, twice)
        kill(fill, twice, True, log, death=second)
        _rerun(twice, True)


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for where, _, names in os.walk(source):
        into = target / Path(where).relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            (into / name).write_bytes(Path(where, name).read_bytes())


@LAYOUTS
def test_disk_full_after_any_number_of_bytes(tmp_path: Path, ragged: bool) -> None:
    log = tmp_path / "log"
    with Trouble(full_disk()) as none:
        fill(tmp_path / "whole", ragged, log)
    written = 2**62 - none.bytes
    assert written > _store(tmp_path / "whole", ragged).nbytes()
    for room in range(0, written, written // 15):
        folder = tmp_path / str(room)
        with pytest.raises(QeditError, match="no space left"), Trouble(full_disk(), bytes=room):
            fill(folder, ragged, log)
        _rerun(folder, ragged)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=["ctrl-c", "memory"])
def test_ended_by_an_exception_at_any_file(tmp_path: Path, error: BaseException) -> None:
    log = tmp_path / "log"
    with Trouble(error) as none:
        fill(tmp_path / "whole", True, log)
    for files in range(2**62 - none.files):
        folder = tmp_path / str(files)
        with pytest.raises(type(error)), Trouble(error, files=files):
            fill(folder, True, log)
        _rerun(folder, True)


def test_a_disk_that_is_full_only_when_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems take the bytes and complain afterwards."""
    log, synced = tmp_path / "log", 0
    really = os.fsync

    def fsync(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 8:
            raise full_disk()
        really(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(QeditError, match="no space left"):
            fill(tmp_path / "store", True, log)
    _rerun(tmp_path / "store", True)


def test_a_manifest_is_named_after_all_else_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power failure keeps is what was synced: it must never be a manifest alone."""
    synced: set[int] = set()
    complete: list[Path] = []
    fsync, rename = os.fsync, Path.replace

    def spy_fsync(handle: int) -> None:
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def spy_rename(self: Path, target: Path) -> Path:
        if target.name == "manifest.json":
            everything = [target.parent, *target.parent.rglob("*")]
            assert {path.name for path in everything if path.stat().st_ino not in synced} == set()
            complete.append(target.parent)
            synced.clear()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_rename)
    fill(tmp_path, True, tmp_path / "log")
    assert len(complete) == 3
    # and then its name, and that of the part, reach the disk as well
    assert {complete[-1].stat().st_ino, complete[-1].parent.stat().st_ino} <= synced
