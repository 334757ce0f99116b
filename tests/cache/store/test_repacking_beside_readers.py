"""Rows move to other parts while others look for them, read them and verify them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashing import RECIPE, row_of

import qedit.cache.format.index as index_module
import qedit.cache.format.part as part_module
import qedit.cache.store.verifying as verifying
from qedit.cache.errors import Damaged
from qedit.cache.format.index import indices_in, replace_indices, spoilt_indices
from qedit.cache.format.part import Part
from qedit.cache.format.reading import KEPT_OPEN
from qedit.cache.store.repacking import carry_out, plan_repacking
from qedit.cache.store.store import LATENTS, Store

KEYS = [f"{number:032x}" for number in range(12)]


def _opened(folder: Path) -> Store:
    return Store(folder, RECIPE, LATENTS)


def _fill(folder: Path, keys: list[str] = KEYS) -> Store:
    """Two rows a part."""
    store = _opened(folder)
    with store.adding():
        for at in range(0, len(keys), 2):
            store.add(keys[at : at + 2], [row_of(key, LATENTS) for key in keys[at : at + 2]])
    return store


def _compact(folder: Path) -> None:
    store = _opened(folder)
    with store.writing():
        carry_out(store, plan_repacking(store, compact=True))


def _once_before(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, do: Callable[[], None]
) -> None:
    """Have `do` done right before the function is called the next time."""
    real, left = getattr(where, name), [do]

    def called(*args: Any, **options: Any) -> Any:
        while left:
            left.pop()()
        return real(*args, **options)

    monkeypatch.setattr(where, name, called)


def _assert_holds(store: Store) -> None:
    assert store.missing(KEYS) == []
    for key in KEYS:
        assert np.array_equal(store.read(key), row_of(key, LATENTS))


def test_a_row_has_moved_and_another_thread_has_noticed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _fill(tmp_path)

    def move() -> None:
        _compact(tmp_path)
        KEPT_OPEN._files.clear()
        assert reader.refresh()

    _once_before(monkeypatch, Part, "read", move)
    assert np.array_equal(reader.read(KEYS[0]), row_of(KEYS[0], LATENTS))


def test_a_part_that_is_really_damaged_is_found_so_at_once(tmp_path: Path) -> None:
    reader = _fill(tmp_path)
    for part in reader.part_paths():
        (part / "latents" / "c.0.0.0.0").unlink()
    with pytest.raises(Damaged, match="is missing"):
        reader.read(KEYS[0])


def test_two_threads_notice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has just listed the parts when the other begins to look everything up anew."""
    reader = _fill(tmp_path)
    _compact(tmp_path)
    looking, done = threading.Event(), threading.Event()

    def stay_here() -> None:
        if threading.current_thread() is other:
            looking.set()
            done.wait(10)

    def let_other_begin() -> None:
        other.start()
        looking.wait(0.3)

    other = threading.Thread(target=reader.refresh)
    _once_before(monkeypatch, part_module, "read_manifest", stay_here)
    _once_before(monkeypatch, os, "listdir", let_other_begin)
    try:
        reader.refresh()
        _assert_holds(reader)
    finally:
        done.set()
        other.join()


def test_threads_read_while_rows_move(tmp_path: Path) -> None:
    keys = [f"{number:032x}" for number in range(80)]
    _fill(tmp_path, keys)
    reader, done = _opened(tmp_path), threading.Event()

    def read(seed: int) -> int:
        chance, count = random.Random(seed), 0
        while not done.is_set():
            key = chance.choice(keys)
            assert np.array_equal(reader.read(key), row_of(key, LATENTS))
            count += 1
            time.sleep(0.0005)  # or the thread that moves them hardly gets its turn
        return count

    with ThreadPoolExecutor(2) as threads:
        reads = [threads.submit(read, seed) for seed in range(2)]
        try:
            _compact(tmp_path)
        finally:
            done.set()
        assert all(one.result() for one in reads)


def test_a_store_that_is_opened_while_rows_move_has_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path)
    opened = _opened(tmp_path)
    _once_before(monkeypatch, part_module, "read_manifest", lambda: _compact(tmp_path))
    _assert_holds(opened)


def test_so_has_one_that_looks_again_while_new_rows_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _opened(tmp_path)
    assert store.missing(KEYS) == KEYS
    _fill(tmp_path)
    _once_before(monkeypatch, part_module, "read_manifest", lambda: _compact(tmp_path))
    assert store.refresh()
    _assert_holds(store)


@pytest.mark.parametrize("at", ["read_manifest", "crc32c"])
def test_a_part_that_goes_while_it_is_verified_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Before its table is read, and while its files are."""
    store = _fill(tmp_path)
    where = {"read_manifest": part_module, "crc32c": verifying}[at]
    _once_before(monkeypatch, where, at, lambda: _compact(tmp_path))
    assert store.verify() == []
    _assert_holds(store)


def test_an_index_that_is_replaced_while_it_is_verified_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _fill(tmp_path)
    listing = store.listing()
    assert listing is not None
    replace_indices(store.path, listing, store=store.fingerprint)
    (index,) = indices_in(store.path)
    _once_before(monkeypatch, index_module, "read_index", index.unlink)
    assert spoilt_indices(store.path, store=store.fingerprint) == []
