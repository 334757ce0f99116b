"""gc in what was moved or copied: it works, says so, and takes nothing that a run still needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import loaded, said, with_files

from qedit.stages.stores.moves import RUN_ID_FILE, keep_id, known_id
from qedit.stages.stores.pins import RUNS, run_id
from qedit.stages.stores.run import Run

OTHER_RUN = ("--set", "output_dir=out2", "--set", "vae_dtype=bf16")
Way = Callable[[Path, Path], None]


def _renamed(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    old.rename(new)


def _copied_away(old: Path, new: Path) -> None:
    """As rsync does between two disks; what lies at the old place then is of another kind."""
    _beside(old, new)
    shutil.rmtree(old)


def _beside(old: Path, new: Path) -> None:
    shutil.copytree(old, new, copy_function=shutil.copyfile)  # with new times


def _ways(plain: Way) -> pytest.MarkDecorator:
    """Every way; those besides `plain` among the longer tests."""
    ways = (_renamed, _copied_away, _beside)
    marks = {True: (), False: (pytest.mark.full,)}
    return pytest.mark.parametrize(
        "way", [pytest.param(way, marks=marks[way is plain]) for way in ways]
    )


@pytest.fixture
def project(copy: Path) -> Path:
    """A project of two runs that have begun; one row of it is nobody's."""
    with_files("cache-vae", *OTHER_RUN)
    with_files("cache-embeds", *OTHER_RUN)
    for name in ("out", "out2"):
        run = Run(loaded(f"output_dir={name}"))
        run.output_dir.mkdir()
        keep_id(run.output_dir, run_id(run))
    (copy / "edited" / "p2.txt").write_text("another caption")
    for options in ((), OTHER_RUN):
        with_files("pair", *options)
        with_files("cache-embeds", *options)
    return copy


def _assert_clean(first: tuple[str, ...] = (), second: tuple[str, ...] = OTHER_RUN) -> None:
    """gc of the first run takes the row, and nothing that either of them needs."""
    assert said(with_files("gc", "--json", *first))["rows"] == 1
    with_files("gc", "--yes", *first)
    assert said(with_files("gc", "--json", *first))["bytes"] == 0
    for options in (first, second):
        for stage in ("pair", "cache-vae", "cache-embeds"):
            assert said(with_files(stage, "--json", *options))["computed"] == 0
        with_files("verify", *options)
    assert said(with_files("gc", "--json", *second))["rows"] == 0


@_ways(_beside)
def test_gc_of_a_moved_or_copied_project(
    project: Path, tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "disk" / "project"
    monkeypatch.chdir(tmp_path)
    way(project, new)
    monkeypatch.chdir(new)
    shown = said(with_files("gc", "--json"))
    assert shown["kept_for"] == [str(new / "out2")]
    (moved,) = shown["moved"]
    if way is _beside:
        assert moved.startswith(f"{new} is a copy of {project}: ")
    else:
        assert moved.startswith(f"{project} was moved to {new}: ")
    assert moved in with_files("gc").stdout
    _assert_clean()
    assert said(with_files("gc", "--json"))["moved"] == []
    if way is _beside:
        monkeypatch.chdir(project)
        assert said(with_files("gc", "--json"))["moved"] == []
        _assert_clean()
        ids = {known_id(folder / name) for folder in (project, new) for name in ("out", "out2")}
        assert len(ids) == 4
        assert "" not in ids


@_ways(_copied_away)
def test_gc_of_moved_or_copied_caches(project: Path, way: Way) -> None:
    way(project / "caches", project / "disk" / "cached")
    sets = ("--set", "cache_dir=disk/cached")
    shown = said(with_files("gc", "--json", *sets))
    assert shown["kept_for"] == [str(project / "out2")]
    assert [str(project / "caches") in line for line in shown["moved"]] == [True]
    _assert_clean(sets, (*sets, *OTHER_RUN))
    if way is _beside:
        _assert_clean()


@_ways(_renamed)
def test_gc_of_a_run_in_a_moved_or_copied_folder(project: Path, way: Way) -> None:
    former = known_id(project / "out")
    way(project / "out", project / "results" / "new")
    sets = ("--set", "output_dir=results/new")
    shown = said(with_files("gc", "--json", *sets))
    others = [str(project / "out")] if way is _beside else []
    assert shown["kept_for"] == [*others, str(project / "out2")]
    assert [str(project / "out") in line for line in shown["moved"]] == [True]
    _assert_clean(sets)
    for stage in ("pair", "cache-vae"):  # to other sizes: what only it named before may go now
        with_files(stage, *sets, "--set", "data.edited.resolution=96")
    assert (known_id(project / "results" / "new") == former) is (way is not _beside)


@pytest.mark.full
def test_gc_where_both_were_moved_to_different_places(project: Path) -> None:
    _copied_away(project / "caches", project / "fast" / "cached")
    _renamed(project / "out", project / "results" / "new")
    sets = ("--set", "cache_dir=fast/cached")
    own = (*sets, "--set", "output_dir=results/new")
    assert len(said(with_files("gc", "--json", *own))["moved"]) == 2
    _assert_clean(own, (*sets, *OTHER_RUN))


def test_a_moved_run_frees_what_it_wanted_before(project: Path) -> None:
    """It is known by its id: its record of the former place is not another run's."""
    _renamed(project / "out", project / "new")
    larger = ("--set", "output_dir=new", "--set", "data.edited.resolution=96")
    for options in (larger, (*larger, *OTHER_RUN)):
        for stage in ("pair", "cache-vae", "cache-embeds"):
            with_files(stage, *options)
    assert said(with_files("gc", "--json", *larger))["rows"] > 4


@pytest.mark.parametrize("content", [b"", b'{"id": 1, "crc32c": "0"}'])
def test_an_id_that_cannot_be_read_stops_nothing(project: Path, content: bytes) -> None:
    (project / "out" / RUN_ID_FILE).write_bytes(content)
    _assert_clean()


def test_what_is_no_record_is_named_and_left_alone(project: Path) -> None:
    records = project / "caches" / "vae" / "edited" / RUNS
    (records / "notes.json").write_text("{}")
    (records / ("0" * 16 + ".json")).mkdir()
    lines = with_files("gc").stdout
    for name in ("notes.json", "0" * 16 + ".json"):
        assert f"{records.relative_to(project) / name}: no record of a run; left alone" in lines
    _assert_clean()
    assert (records / "notes.json").is_file()


def test_a_folder_in_place_of_the_own_record_is_named(project: Path) -> None:
    (own,) = (
        path
        for path in (project / "caches" / "vae" / "edited" / RUNS).iterdir()
        if json.loads(path.read_bytes())["output_dir"] == str(project / "out")
    )
    own.unlink()
    own.mkdir()
    assert f"{own.name} is a folder" in with_files("cache-vae", expect=1).stderr
    own.rmdir()
    with_files("cache-vae")
    _assert_clean()
