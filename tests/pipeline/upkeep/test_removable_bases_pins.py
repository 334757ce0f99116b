"""cache-base records what it needs before it makes it, and gc renews the record of its run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filled_run import made_configuration, write_table
from quiet import Quiet
from training import SAMPLES

from qedit.cache.errors import Locked
from qedit.cache.files.atomic import new_folder
from qedit.cache.files.lock import writer_lock
from qedit.cache.store.store import Store
from qedit.config.configuration import Configuration
from qedit.pipeline.upkeep.caches import Caches
from qedit.pipeline.upkeep.collect import Removables, alone, clear, collect
from qedit.pipeline.upkeep.removable import Removable
from qedit.stages.cache_base import quantizing
from qedit.stages.cache_base import stage as cache_base
from qedit.stages.frozen_base.modulation_table import base_folder, modulation_table
from qedit.stages.frozen_base.quantized import QuantizedBase, quantized_base
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.stores import pins
from qedit.stages.stores.pins import RUNS, Record, read_records, record_file
from qedit.stages.stores.run import Run

TABLE = {"mixed_precision": "bf16", "base_model_precision": "no_change"}
BASE = {"mixed_precision": "no", "base_model_precision": "int8-quanto"}  # without a table
PLAIN = {"mixed_precision": "no", "base_model_precision": "no_change"}
EACH = pytest.mark.parametrize("settings", [TABLE, BASE], ids=["table", "base"])

Make = Callable[..., Configuration]


@pytest.fixture
def made(filled: Path, tmp_path: Path) -> Make:
    """A function that gives the run, in a copy of its folder, with other settings."""
    folder = Path(shutil.copytree(filled, tmp_path / "copy"))

    def make(*, output: str = "output", **settings: Any) -> Configuration:
        return made_configuration(folder, output_dir=str(tmp_path / output), **settings)

    return make


def _of_kind(removables: Removables, *kinds: str) -> list[Removable]:
    return [one for one in removables.found if one.kind in kinds]


def _gone(run: Configuration) -> Removables:
    with alone(Run(run)) as caches:
        found = collect(caches)
        clear(found)
    return found


def _made(run: Configuration, **options: Any) -> int:
    return cache_base.run(Run(run), Quiet(), device="cpu", **options).computed


def _base_of(run: Configuration) -> QuantizedBase:
    return quantized_base(open_checkpoint(run.settings), run.settings)


def _table_of(run: Configuration) -> Store:
    return modulation_table(open_checkpoint(run.settings), run.settings)


def _place(run: Configuration) -> Path:
    """What these settings have made."""
    quantizes = run.settings.base_model_precision != "no_change"
    return (_base_of(run) if quantizes else _table_of(run)).path


def _pinned_by(place: Path) -> list[str]:
    """The output_dirs of the runs that have recorded that they need it."""
    records = list(read_records(place.parent))
    assert all(isinstance(record, Record) for record in records)
    return [one.output_dir for one in records if isinstance(one, Record) and place.name in one.pins]


def _named(*runs: Configuration) -> list[str]:
    return sorted(str(run.settings.output_dir) for run in runs)


def _stop_after_the_first_part(patch: pytest.MonkeyPatch) -> None:
    add = Store.add

    def once(self: Store, *args: Any) -> None:
        add(self, *args)
        raise KeyboardInterrupt

    patch.setattr(Store, "add", once)


def _stop_when_it_is_there(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stopped(path: Path) -> Iterator[Path]:
        with new_folder(path) as folder:
            yield folder
        raise KeyboardInterrupt

    patch.setattr(quantizing, "new_folder", stopped)


@pytest.mark.parametrize(
    ("settings", "stop"),
    [(TABLE, _stop_after_the_first_part), (BASE, _stop_when_it_is_there)],
    ids=["table", "base"],
)
def test_gc_keeps_what_cache_base_made_before_it_was_stopped(
    made: Make,
    settings: dict[str, str],
    stop: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = made(output="elsewhere", **settings)
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(KeyboardInterrupt):
            _made(other)
    files = sorted(_place(other).rglob("*"))
    assert any(path.suffix in (".safetensors", ".parquet") for path in files)
    assert list(_gone(made(**PLAIN)).lines()) == []
    assert set(files) <= {*_place(other).rglob("*")}
    record_file(Run(other), base_folder(other.settings)).unlink()  # what else kept it? nothing
    _gone(made(**PLAIN))
    assert not _place(other).exists()


@EACH
def test_who_finds_all_of_it_made_keeps_it_before_it_looks(
    made: Make, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `gc` takes it between the look and the record."""
    for place in (pins, cache_base):
        monkeypatch.setattr(place, "LOCK_PATIENCE_SECONDS", 0.0)
    run, other = made(**settings), made(output="elsewhere", **settings)
    assert _made(run) > 0
    with alone(Run(run)):
        with pytest.raises(Locked, match="qedit gc"):
            _made(other)
        assert _made(run) == 0  # it is recorded, and needs no lock
    assert _made(other) == 0
    assert sorted(_pinned_by(_place(run))) == _named(run, other)


@EACH
def test_what_gc_has_removed_meanwhile_is_made_anew(
    made: Make, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for gc before the record sees what is left after it."""
    run, other = made(**settings), made(output="elsewhere", **settings)
    count = _made(run)

    @contextmanager
    def after_gc(folder: Path, **options: Any) -> Iterator[None]:
        shutil.rmtree(_place(run), ignore_errors=True)
        record_file(Run(run), base_folder(run.settings)).unlink(missing_ok=True)
        with writer_lock(folder, **options):
            yield

    with monkeypatch.context() as patch:
        patch.setattr(pins, "writer_lock", after_gc)
        assert _made(other) == count
    assert _pinned_by(_place(other)) == _named(other)


def test_a_base_that_another_process_made_meanwhile_is_recorded(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = made(**BASE), made(output="elsewhere", **BASE)
    _made(run)
    place = _base_of(run).path
    place.rename(tmp_path / "not-yet")

    @contextmanager
    def free_again(folder: Path, **options: Any) -> Iterator[None]:
        (tmp_path / "not-yet").rename(place)
        with writer_lock(folder, **options):
            yield

    monkeypatch.setattr(quantizing, "writer_lock", free_again)
    _made(other)
    assert sorted(_pinned_by(_place(other))) == _named(run, other)


@EACH
def test_a_dry_run_leaves_no_record(made: Make, settings: dict[str, str]) -> None:
    run = made(**settings)
    _made(run, dry_run=True)
    assert not base_folder(run.settings).exists()
    _made(run)
    _made(made(output="elsewhere", **settings), dry_run=True)
    assert len(list(base_folder(run.settings).glob(f"{RUNS}/*.json"))) == 1


@EACH
def test_a_copy_of_the_bases_keeps_what_the_original_does(
    made: Make, settings: dict[str, str], tmp_path: Path
) -> None:
    run = made(**settings)
    _made(run)
    place = _place(run)
    shutil.copytree(place.parent, tmp_path / "elsewhere")
    assert _pinned_by(_place(run)) == _named(run)
    assert _pinned_by(tmp_path / "elsewhere" / place.name) == _named(run)


@EACH
def test_gc_renews_the_record_of_the_base(made: Make, settings: dict[str, str]) -> None:
    """The run's former tables go with it, and other runs must not be refused for them."""
    former = made(output="elsewhere", **settings)
    _made(former)
    larger = {"data": {"resolution": 96}}
    run, other = made(output="elsewhere", **settings, **larger), made(**PLAIN, **larger)
    write_table(run, SAMPLES)
    assert _of_kind(_gone(run), "pairs")  # the former table
    assert _pinned_by(_place(run)) == _named(run)
    assert list(collect(Caches(Run(other))).lines()) == []


@EACH
def test_gc_forgets_what_its_run_uses_no_more(made: Make, settings: dict[str, str]) -> None:
    """Another run keeps it, and this one is in nobody's way."""
    run, other = made(output="elsewhere", **settings), made(**settings)
    for one in (run, other):
        _made(one)
    _gone(made(output="elsewhere", **PLAIN))
    assert _pinned_by(_place(other)) == _named(other)
