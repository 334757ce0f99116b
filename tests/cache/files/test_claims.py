"""Several processes fill one store at once: every row is made once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from crashing import RECIPE, row_of, share, shared_work

from qedit.cache.errors import Locked
from qedit.cache.files import claims
from qedit.cache.files.atomic import unique_name, write_json
from qedit.cache.files.claims import claims_in, living_claims
from qedit.cache.files.lock import new_holder
from qedit.cache.files.owner import this_process
from qedit.cache.store.store import LATENTS, Store

KEYS = [f"{number:032x}" for number in range(240)]


def _batches(keys: list[str]) -> list[list[str]]:
    return [keys[start : start + 6] for start in range(0, len(keys), 6)]


def _assert_complete(folder: Path, keys: list[str]) -> Store:
    store = Store(folder, RECIPE, LATENTS)
    assert store.keys() == set(keys)
    for key in keys:
        assert np.array_equal(store.read(key), row_of(key, LATENTS))
    assert store.verify() == []
    assert claims_in(store.path) == []
    return store


def _start(folder: Path, keys: list[str], seconds: float) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "qedit.cache.store.store"])
    arguments = (folder, keys, folder.with_name("log"), seconds)
    child = context.Process(target=share, args=arguments)
    child.start()
    return child


def _computed(folder: Path) -> Counter[str]:
    return Counter(folder.with_name("log").read_text().split())


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    folder, keys = tmp_path / "store", KEYS[:60]
    children = [_start(folder, keys, 0.05) for _ in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    store = _assert_complete(folder, keys)
    assert set(_computed(folder).values()) == {1}
    tables = [pq.read_table(path / "rows.parquet") for path in store.part_paths()]
    assert sum(map(len, tables)) == len(keys)


@pytest.mark.parametrize("kills", [12, pytest.param(120, marks=pytest.mark.exhaustive)])
def test_eight_processes_of_which_many_are_killed(tmp_path: Path, kills: int) -> None:
    """Whoever is killed, another one begins in its place; at the end all have come to an end."""
    folder, keys = tmp_path / "store", KEYS
    chance = random.Random(7)
    children = [_start(folder, keys, 0.02) for _ in range(8)]
    killed = 0
    while killed < kills:
        time.sleep(chance.uniform(0.0, 0.08))
        at = chance.randrange(8)
        if children[at].is_alive():
            os.kill(children[at].pid or 0, signal.SIGKILL)
            killed += 1
        elif killed and not any(child.is_alive() for child in children):
            break
        children[at].join()
        children[at] = _start(folder, keys, 0.02)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert killed > 4
    _assert_complete(folder, keys)
    # a killed process takes one batch with it at the most
    assert sum(_computed(folder).values()) <= len(keys) + 6 * killed


def _work(folder: Path, batches: list[list[str]], done: set[str]) -> Iterator[list[str]]:
    return shared_work(
        folder,
        batches,
        doing="testing",
        still=lambda keys: [key for key in keys if key not in done],
        waiting=lambda holder: done.update(*batches),
    )


def _claim(folder: Path, keys: list[str], **owner: object) -> None:
    holder = new_holder("another")
    holder = replace(holder, owner=replace(holder.owner, **owner))
    path = folder / claims.CLAIMS / f"{unique_name()}.json"
    write_json(path, {**asdict(holder), "keys": keys})


def test_what_another_one_claims_is_left_to_it(tmp_path: Path) -> None:
    _claim(tmp_path, ["b", "c"], host="elsewhere")
    done: set[str] = set()
    given = []
    for keys in _work(tmp_path, [["a", "b"], ["c"], ["d"]], done):
        given.append(keys)
        done.update(keys)
    assert given == [["a"], ["d"]]
    (claim,) = claims_in(tmp_path)  # its own are gone
    assert claim.keys == {"b", "c"}


def test_the_claims_of_the_dead_do_not_count(tmp_path: Path) -> None:
    _claim(tmp_path, ["a"], started="1")
    assert living_claims(tmp_path) == []
    done: set[str] = set()
    for keys in _work(tmp_path, [["a"]], done):
        assert keys == ["a"]
        done.update(keys)
    assert done == {"a"}
    assert claims_in(tmp_path) == []


def test_an_exception_gives_the_claim_back(tmp_path: Path) -> None:
    def interrupted() -> None:
        for _ in _work(tmp_path, [["a"]], set()):
            assert len(claims_in(tmp_path)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert claims_in(tmp_path) == []


def test_who_removes_rows_is_refused_while_others_fill(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE, LATENTS)
    _claim(store.path, ["a"], host="elsewhere")
    with pytest.raises(Locked, match="elsewhere") as told, store.writing():
        raise AssertionError("the block must not run")
    assert "qedit unlock" in told.value.do
    assert this_process().host not in told.value.what
