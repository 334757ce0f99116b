"""A part that has lost a file is noticed before anything is computed, and made anew."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from make_store import KINDS, store_of
from paths import GOLDEN
from small_run import cache_rows, make_run, said, with_files
from store_rows import LAYOUTS

from qedit.cache.errors import Locked
from qedit.cache.files.claims import CLAIMS
from qedit.cache.files.lock import new_holder
from qedit.cache.format.index import replace_indices
from qedit.cache.store.dropping import drop_torn, pass_over_torn
from qedit.cache.store.store import LATENTS, Layout, Store

STORE = GOLDEN / "store-2"
RECIPE = {"stage": "test"}


def _delete(path: Path) -> None:
    path.unlink()


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


RECIPES = pytest.mark.parametrize(
    "recipe", [RECIPE, {**RECIPE, "compression": "zstd"}], ids=["plain", "packed"]
)
HURTS = pytest.mark.parametrize("hurt", [_delete, _shorten, _empty])


def _row(key: str, layout: Layout) -> np.ndarray:
    # rows of several lengths; the last two of embeds lie in a second shard of their part
    lengths = {"a": 100, "b": 7, "c": 9000, "d": 9000, "e": 1}
    shape = (lengths[key[-1]], 4) if layout.ragged else (4, 3, 5)
    return np.full(shape, ord(key[-1]), np.uint16)


def _filled(folder: Path, layout: Layout, *, recipe: dict[str, str] = RECIPE) -> Store:
    store = Store(folder, recipe, layout)
    with store.adding():
        for keys in (["1a", "1b", "1c", "1d", "1e"], ["2a", "2b"]):
            store.add(keys, [_row(key, layout) for key in keys])
    return store


def _shards(store: Store, key: str) -> list[Path]:
    return sorted((store._find(key)[0].path / store.layout.array).glob("c.*"))


@LAYOUTS
@RECIPES
def test_a_whole_store_has_lost_nothing(
    tmp_path: Path, layout: Layout, recipe: dict[str, str]
) -> None:
    store = _filled(tmp_path, layout, recipe=recipe)
    assert store.torn() == set()
    assert Store(tmp_path / "none", RECIPE, layout).torn() == set()
    _delete(_shards(store, "2a")[0])
    assert store.torn() == {store._find("2a")[0].path.name}


@LAYOUTS
@HURTS
@RECIPES
@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "listed"])
def test_rows_that_went_with_a_file_are_missing_and_no_others(
    tmp_path: Path,
    layout: Layout,
    hurt: Callable[[Path], None],
    recipe: dict[str, str],
    indexed: bool,
) -> None:
    store = _filled(tmp_path, layout, recipe=recipe)
    listing = store.listing()
    assert listing is not None
    if indexed:  # which knows nothing of it
        replace_indices(store.path, listing, store=store.fingerprint)
    hurt(_shards(store, "1a")[0])
    every = ["1a", "1b", "1c", "1d", "1e", "2a", "2b"]
    seen = Store(tmp_path, recipe, layout)
    assert seen.missing(every) == []
    assert seen.leave_out_torn() == 1
    assert seen.missing(every) == every[:5]
    assert not seen.refresh()
    assert seen.missing(every) == every[:5]
    # only who gives it up looks which rows are whole: those of the other shard are
    assert drop_torn([store]) == 1
    assert drop_torn([store]) == 0
    lost = every[:3] if layout.ragged else every[:5]
    again = Store(tmp_path, recipe, layout)
    assert again.missing(every) == store.missing(every) == lost
    assert again.verify() == []
    for key in set(every) - set(lost):
        assert np.array_equal(again.read(key), _row(key, layout))


def test_an_index_that_says_nothing_of_lengths_is_asked_as_ever(tmp_path: Path) -> None:
    """One of an earlier version: what is shorter than any packed shard is found."""
    shutil.copytree(STORE, tmp_path / "golden")
    (kind,) = [(layout, also) for layout, also, has_index in KINDS if also and has_index]
    store = store_of(tmp_path / "golden", *kind)
    listing = store.listing()
    assert listing is not None
    assert [grid.shard_bytes for grid in listing.grids] == [None, None]
    assert store.torn() == set()
    one, other = (shard for path in store.part_paths() for shard in path.glob("*/c.*"))
    _empty(one)
    assert store.torn() == {one.parents[1].name}
    _delete(other)
    assert store.torn() == {one.parents[1].name, other.parents[1].name}


def test_many_parts_are_asked_after_by_threads(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE, LATENTS)
    with store.adding():
        for number in range(300):
            store.add([f"{number}a"], [_row("a", LATENTS)])
    assert store.torn() == set()
    for number in (7, 250):
        _shorten(_shards(store, f"{number}a")[0])
    assert store.torn() == {store._find(f"{number}a")[0].path.name for number in (7, 250)}


def test_a_part_that_has_gone_as_a_whole_has_moved(tmp_path: Path) -> None:
    store = _filled(tmp_path, LATENTS)
    assert store.missing(["1a"]) == []
    store._find("1a")[0].path.rename(tmp_path / "elsewhere")
    assert store.torn() == set()


def test_nothing_is_given_up_where_others_are_at_work(tmp_path: Path) -> None:
    store = _filled(tmp_path, LATENTS)
    (store.path / CLAIMS).mkdir()
    claim = store.path / CLAIMS / "some.json"
    claim.write_text(json.dumps({**asdict(new_holder("something")), "keys": []}))
    assert drop_torn([store]) == 0
    _delete(_shards(store, "1a")[0])
    with pytest.raises(Locked, match="something"):
        drop_torn([store])
    # who comes to help may: what was lost stays for the next one
    (said,) = pass_over_torn([store], drops=True)
    assert said.startswith("1 part has lost a file, and another process is at work there: run")
    assert store.missing(["1a"]) == []
    claim.unlink()
    assert drop_torn([store]) == 1


@pytest.mark.parametrize(
    ("stage", "where", "rows"),
    [("cache-vae", "vae/edited", "latents"), ("cache-embeds", "text_embeds", "text tails")],
)
def test_status_says_so_and_the_stage_makes_exactly_those_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, where: str, rows: str
) -> None:
    folder = make_run(tmp_path, flavour="edit-v2")
    monkeypatch.chdir(folder)
    cache_rows()
    torn = sorted((folder / "caches" / where).rglob("c.*"))[:2]
    lost = sum(len(pq.read_table(shard.parents[1] / "rows.parquet")) for shard in torn)
    for shard, hurt in zip(torn, (_delete, _shorten), strict=False):
        hurt(shard)
    state = _state(rows)
    assert state["missing"] == lost
    assert re.search(rf"{len(torn)} parts? ha\w+ lost a file", state["say"])
    planned = said(with_files(stage, "--dry-run", "--json"))
    assert planned["wanted"] - planned["kept"] == lost
    assert all(shard.parents[1].exists() for shard in torn)
    told = said(with_files(stage, "--json"))
    assert (told["computed"], told["failed"]) == (lost, 0)
    assert not any(shard.parents[1].exists() for shard in torn)
    assert said(with_files("verify", "--json"))["damaged"] == []
    assert said(with_files(stage, "--json"))["computed"] == 0
    assert (_state(rows)["missing"], "lost" in _state(rows)["say"]) == (0, False)


def _state(rows: str) -> dict[str, Any]:
    """What `qedit status` says of one kind of row."""
    results: list[dict[str, Any]] = said(with_files("status", "--json"))["results"]
    return next(one for one in results if one["what"] == rows)
