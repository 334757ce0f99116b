"""Rows are dropped and moved without any other being lost, whenever the process ends."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from crashing import (
    RECIPE,
    WANTED,
    Death,
    changes_of,
    deaths_in,
    drop_damaged,
    fill,
    kill,
    repack,
    row_of,
)
from store_rows import LAYOUTS

from qedit.cache.files.claims import alone_in
from qedit.cache.format.index import indices_in, replace_indices
from qedit.cache.store.dropping import drop
from qedit.cache.store.repacking import carry_out, plan_repacking
from qedit.cache.store.store import EMBEDS, LATENTS, Layout, Store
from qedit.cache.store.verifying import Damage


def _filled(folder: Path, layout: Layout, keys: list[str], rows: int) -> Store:
    store = Store(folder, RECIPE, layout)
    with store.writing():
        for at in range(0, len(keys), rows):
            some = keys[at : at + rows]
            store.add(some, [row_of(key, layout) for key in some])
    return store


def _assert_holds(store: Store, keys: set[str]) -> None:
    assert store.keys() == keys
    for key in keys:
        assert np.array_equal(store.read(key), row_of(key, store.layout))
    assert store.verify() == []


@LAYOUTS
def test_what_nobody_wants_goes_and_the_rest_stays(tmp_path: Path, layout: Layout) -> None:
    keys = [f"{number:032x}" for number in range(20)]
    store = _filled(tmp_path, layout, keys, 4)
    reader = Store(tmp_path, RECIPE, layout)
    assert len(reader) == 20
    wanted = {*keys[:4], keys[5], keys[18]}
    plan = plan_repacking(store, pa.chunked_array([sorted(wanted)]))
    assert (len(plan.gone), len(plan.moved), plan.rows) == (2, 2, 14)
    assert plan.count_bytes > 0
    with store.writing():
        carry_out(store, plan)
    _assert_holds(Store(tmp_path, RECIPE, layout), wanted)
    _assert_holds(store, wanted)
    # a reader that opened the store before finds the row in its new part
    assert np.array_equal(reader.read(keys[5]), row_of(keys[5], layout))
    assert not plan_repacking(store, pa.chunked_array([sorted(wanted)]))


@LAYOUTS
def test_small_parts_become_few(tmp_path: Path, layout: Layout) -> None:
    keys = [f"{number:032x}" for number in range(70)]
    store = _filled(tmp_path, layout, keys, 2)
    assert len(store.part_paths()) == 35
    assert not plan_repacking(store)
    with store.writing():
        carry_out(store, plan_repacking(store, compact=True))
    assert len(store.part_paths()) == (1 if layout.ragged else 2)
    _assert_holds(store, set(keys))
    _assert_holds(Store(tmp_path, RECIPE, layout), set(keys))
    assert not plan_repacking(store, compact=True)


@LAYOUTS
def test_parts_that_hold_the_same_rows_become_one(tmp_path: Path, layout: Layout) -> None:
    """As a process leaves them that was killed before it removed what it had moved."""
    keys = [f"{number:032x}" for number in range(3)]
    store = _filled(tmp_path, layout, [*keys, *keys], 3)
    with store.writing():
        carry_out(store, plan_repacking(store, compact=True))
    assert len(store.part_paths()) == 1
    _assert_holds(store, set(keys))


def test_parts_of_other_shapes_are_not_joined_again_and_again(tmp_path: Path) -> None:
    store = Store(tmp_path, RECIPE, LATENTS)
    wide = np.zeros((2, 3, 5), np.uint16)
    with store.writing():
        store.add(["a"], [row_of("a", LATENTS)])
        store.add(["w"], [wide])
        assert not plan_repacking(store, compact=True)
        store.add(["b"], [row_of("b", LATENTS)])
        plan = plan_repacking(store, compact=True)
        assert sorted(plan.moved.values()) == [["a"], ["b"]]
        carry_out(store, plan)
    assert len(store.part_paths()) == 2
    assert not plan_repacking(store, compact=True)
    assert np.array_equal(store.read("w"), wide)


def test_the_index_is_believed_about_parts_that_are_there_alone(tmp_path: Path) -> None:
    keys = [f"{number:032x}" for number in range(12)]
    store = _filled(tmp_path, LATENTS, keys, 4)
    listing = store.listing()
    assert listing is not None
    replace_indices(store.path, listing, store=store.fingerprint)
    first = store.part_paths()[0]
    gone = set(listing.only({first.name}).rows["key"].to_pylist())
    for file in sorted(first.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    first.rmdir()
    again = Store(tmp_path, RECIPE, LATENTS)
    _assert_holds(again, set(keys) - gone)
    with again.adding():
        again.add(sorted(gone), [row_of(key, LATENTS) for key in sorted(gone)])
    _assert_holds(Store(tmp_path, RECIPE, LATENTS), set(keys))


def test_a_spoilt_index_is_worth_nothing_and_does_no_harm(tmp_path: Path) -> None:
    keys = [f"{number:032x}" for number in range(160)]
    store = _filled(tmp_path, LATENTS, keys, 4)
    (index,) = indices_in(store.path)  # forty parts: it pays
    whole = index.read_bytes()
    for spoilt in (b"", whole[:-9], whole[:50] + b"?" + whole[51:]):
        index.write_bytes(spoilt)
        _assert_holds(Store(tmp_path, RECIPE, LATENTS), set(keys))
    index.write_bytes(whole)
    (store.part_paths()[7] / "rows.parquet").write_bytes(b"")
    # what a part says itself is not asked as long as the index is whole, but verified
    assert Store(tmp_path, RECIPE, LATENTS).keys() == set(keys)
    assert len(Store(tmp_path, RECIPE, LATENTS).verify()) == 1


def test_a_manifest_short_of_its_last_byte_is_found(tmp_path: Path) -> None:
    """It still says the same, but it is not what was written."""
    store = _filled(tmp_path, LATENTS, WANTED, 7)
    path = store.part_paths()[0] / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])
    (damage,) = store.verify()
    assert "manifest.json" in damage.what
    _assert_mended(tmp_path, LATENTS, WANTED, [damage])


def _injure(store: Store, chance: random.Random) -> dict[Path, bytes]:
    """Do one of the things that happen to files; what the files held before."""
    files = sorted(path for path in store.parts_folder.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    path, other = chance.sample(files, 2)
    data = bytearray(before[path])
    match chance.choice(["flip", "cut", "delete", "swap"]):
        case "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        case "cut":
            path.write_bytes(data[: chance.randrange(len(data))])
        case "delete":
            path.unlink()
        case _ if before[other] != before[path]:
            path.write_bytes(before[other])
            other.write_bytes(data)
        case _:
            path.write_bytes(b"")
    return before


@LAYOUTS
@pytest.mark.parametrize("injuries", [60, pytest.param(250, marks=pytest.mark.full)])
def test_every_injury_is_found_and_mended(tmp_path: Path, layout: Layout, injuries: int) -> None:
    keys = [f"{number:032x}" for number in range(12)]
    chance = random.Random(3)
    store = _filled(tmp_path, layout, keys, 4)
    for number in range(injuries):
        before = _injure(store, chance)
        damages = Store(tmp_path, RECIPE, layout).verify()
        assert damages, "an injury that is not found"
        if number % 10 == 0:
            _assert_mended(tmp_path, layout, keys, damages)
            store = Store(tmp_path, RECIPE, layout)
        else:
            for path, data in before.items():
                path.write_bytes(data)


def _assert_mended(folder: Path, layout: Layout, keys: list[str], damages: list[Damage]) -> None:
    """Without the damage the store is whole, and what was lost can be made anew."""
    store = Store(folder, RECIPE, layout)
    with alone_in([store.path], doing="mending"):
        drop(store, damages)
    store = Store(folder, RECIPE, layout)
    assert store.verify() == []
    missing = store.missing(keys)
    with store.writing():
        store.add(missing, [row_of(key, layout) for key in missing])
    _assert_holds(store, set(keys))


def _after(folder: Path, ragged: bool, work: str) -> None:
    """Whenever a process ended: what is wanted is there, and to do it again finishes it."""
    layout = EMBEDS if ragged else LATENTS
    store = Store(folder, RECIPE, layout)
    for key in WANTED[2:]:
        assert np.array_equal(store.read(key), row_of(key, layout))
    repack(folder, ragged)
    _assert_holds(Store(folder, RECIPE, layout), set(WANTED[2:]))
    names = {path.name for path in (folder / store.fingerprint).iterdir()}
    assert names <= {"recipe.json", "parts", "claims"}, work


@pytest.mark.parametrize("ragged", [False, True], ids=["latents", "embeds"])
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_while_rows_are_moved(tmp_path: Path, ragged: bool, every: int) -> None:
    whole = tmp_path / "whole"
    fill(whole, ragged, tmp_path / "log")
    deaths: list[Death] = list(deaths_in(changes_of(repack, whole, ragged)))
    assert len(deaths) > 15
    for death in deaths[::every]:
        folder = tmp_path / f"{death.at}-{death.way}"
        fill(folder, ragged, tmp_path / "log")
        kill(repack, folder, ragged, death=death)
        _after(folder, ragged, str(death))


def test_a_row_is_moved_from_the_part_in_which_it_is_whole(tmp_path: Path) -> None:
    """Two parts hold it, as after a crash of gc, and each is damaged in another place."""
    rows = [np.full((16, 8, 8), number, np.uint16) for number in range(3)]
    store = Store(tmp_path, {"rows": "latents"}, LATENTS)
    with store.adding():
        store.add(["a", "b"], rows[:2])
        store.add(["a", "c"], [rows[0], rows[2]])
    first, second = store.part_paths()
    for part, at in ((first, 2048 + 64), (second, 0)):  # b there, a here
        (shard,) = (part / "latents").glob("c.*")
        with shard.open("r+b") as file:
            file.seek(at)
            file.write(b"?")
    with alone_in([store.path], doing="mending"):
        drop(store, store.verify())
    left = Store(tmp_path, {"rows": "latents"}, LATENTS)
    assert left.verify() == []
    assert left.keys() == {"a", "c"}
    assert np.array_equal(left.read("a"), rows[0])


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_while_damage_is_dropped(tmp_path: Path, every: int) -> None:
    def hurt(folder: Path) -> None:
        fill(folder, False, tmp_path / "log")
        store = Store(folder, RECIPE, LATENTS)
        part = next(path for path in store.part_paths() if _keys(store, path) == WANTED[:3])
        shard = part / "latents" / "c.0.0.0.0"
        data = shard.read_bytes()
        shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])

    hurt(tmp_path / "whole")
    for death in list(deaths_in(changes_of(drop_damaged, tmp_path / "whole")))[::every]:
        folder = tmp_path / f"{death.at}-{death.way}"
        hurt(folder)
        kill(drop_damaged, folder, death=death)
        drop_damaged(folder)
        _assert_holds(Store(folder, RECIPE, LATENTS), set(WANTED[1:]))


def _keys(store: Store, path: Path) -> list[str]:
    listing = store.listing()
    assert listing is not None
    return listing.only({path.name}).rows["key"].to_pylist()
