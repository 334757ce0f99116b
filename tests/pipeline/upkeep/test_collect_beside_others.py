"""What comes into being beside gc, after it took its locks, is not for it to judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filled_run import made_configuration

from qedit.cache.files.atomic import LEFTOVER, write_json
from qedit.cache.files.fingerprint import fingerprint
from qedit.cache.files.owner import this_process
from qedit.cache.store.store import Store
from qedit.config.configuration import Configuration
from qedit.pipeline.upkeep.caches import Caches
from qedit.pipeline.upkeep.collect import Removables, alone, clear, collect
from qedit.stages.frozen_base.modulation_table import base_folder, table_recipe
from qedit.stages.frozen_base.quantized import QUANTIZED_FILE, quantized_recipe
from qedit.stages.samples.table import MANIFEST
from qedit.stages.stores.pins import pin_existing, pin_of, pin_places
from qedit.stages.stores.row_kinds import RowKind
from qedit.stages.stores.run import Run

ELSEWHERE = replace(this_process(), host="elsewhere", pid=12)
# It makes something that gc would take: gives that, and what comes into the caches with it.
Maker = Callable[[Configuration], tuple[Path, Path]]


@pytest.fixture
def run(filled: Path, tmp_path: Path) -> Configuration:
    """It in a copy of its folder, for which gc finds nothing."""
    run = made_configuration(Path(shutil.copytree(filled, tmp_path / "copy")))
    assert not list(_gone(run).lines())
    return run


def _gone(run: Configuration, *, compact: bool = False) -> Removables:
    with alone(Run(run)) as caches:
        found = collect(caches, compact=compact)
        clear(found)
    return found


def _latents(run: Configuration) -> Store:
    return Run(run).stores.latents.of("edits")


def _of_another_recipe(run: Configuration) -> tuple[Path, Path]:
    latents = _latents(run)
    recipe = {**latents.recipe, "made": "otherwise"}
    path = Path(shutil.copytree(latents.path, latents.path.parent / fingerprint(recipe)))
    write_json(path / "recipe.json", recipe)
    pin_places(Run(run), [path], pin_of(Run(run)))
    return path, path


def _without_recipe(run: Configuration) -> tuple[Path, Path]:
    path = _latents(run).path
    path = Path(shutil.copytree(path, path.parent / ("0" * 16)))
    (path / "recipe.json").unlink()
    return path, path


def _unfinished_part(run: Configuration) -> tuple[Path, Path]:
    store = _latents(run)
    part = store.parts_folder / f"{ELSEWHERE}~7"
    part.mkdir()
    return part, store.path


def _rows_that_nobody_names(run: Configuration) -> tuple[Path, Path]:
    store = _latents(run)
    row, before = store.read(next(iter(store.keys()))), set(store.part_paths())
    with store.adding():
        store.add(["nobody's"], [row])
    (part,) = set(store.part_paths()) - before
    return part, store.path


def _table(run: Configuration) -> tuple[Path, Path]:
    store = Store(
        base_folder(run.settings), table_recipe("another model"), RowKind.MODULATION.layout
    )
    with store.adding():
        pass
    pin_existing(Run(run), [store])
    return store.path, store.path


def _base(run: Configuration) -> tuple[Path, Path]:
    recipe = quantized_recipe("another model", run.settings)
    folder = base_folder(run.settings)
    path = folder / fingerprint(recipe)
    write_json(path / QUANTIZED_FILE, {**recipe, "files": {}})
    return path, folder


def _unfinished_base(run: Configuration) -> tuple[Path, Path]:
    folder = base_folder(run.settings)
    path = folder / f".base~{ELSEWHERE}~3{LEFTOVER}"
    path.mkdir(parents=True)
    return path, folder


def _pairs(run: Configuration) -> tuple[Path, Path]:
    """A table that no run names, and what a writer on another host has begun beside it."""
    (main,) = run.main_datasets()
    (table,) = (path.parent for path in run.pairs_folder(main).glob(f"*/{MANIFEST}"))
    former = Path(shutil.copytree(table, table.with_name("former")))
    return former, run.pairs_folder(main).parent


def _unfinished_pairs(run: Configuration) -> tuple[Path, Path]:
    root = _pairs(run)[1]
    path = root / f".later~{ELSEWHERE}~4{LEFTOVER}"
    path.mkdir()
    return path, root


@pytest.mark.parametrize(
    "make",
    [
        _of_another_recipe,
        _without_recipe,
        _unfinished_part,
        _rows_that_nobody_names,
        _table,
        _base,
        _unfinished_base,
        _pairs,
        _unfinished_pairs,
    ],
)
def test_what_comes_into_being_after_gc_took_its_locks_stays(
    run: Configuration, tmp_path: Path, make: Maker
) -> None:
    """Who makes it may be about to note so: the next gc can tell."""
    made, comes = make(run)
    comes.rename(tmp_path / "not-yet")
    with alone(Run(run)) as caches:
        (tmp_path / "not-yet").rename(comes)
        found = collect(caches)
        assert (list(found.lines()), found.count_bytes) == ([], 0)
        clear(found)
    assert made.exists()
    _gone(run)
    assert not made.exists()


def test_a_store_that_comes_into_being_meanwhile_is_not_compacted(
    run: Configuration, tmp_path: Path
) -> None:
    store = _latents(run)
    key = next(iter(store.keys()))
    row = store.read(key)
    for _ in range(2):  # small parts, which could be one
        with store.adding():
            store.add([key], [row])
    parts = store.part_paths()
    store.path.rename(tmp_path / "not-yet")
    with alone(Run(run)) as caches:
        (tmp_path / "not-yet").rename(store.path)
        clear(collect(caches, compact=True))
    assert store.part_paths() == parts
    _gone(run, compact=True)
    assert len(store.part_paths()) < len(parts)


def test_what_was_found_without_locks_is_not_removed(run: Configuration) -> None:
    _of_another_recipe(run)
    found = collect(Caches(Run(run)))
    assert list(found.lines())
    with pytest.raises(RuntimeError, match="without the locks"):
        clear(found)
