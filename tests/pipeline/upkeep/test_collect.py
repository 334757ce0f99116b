"""gc takes nothing that another run makes, names or trains on, and says where it cannot know."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from damage import flip
from old_notes import OLD_NOTES, as_old_notes
from small_run import cache_rows, loaded, said, with_files

from qedit.cache.errors import Locked
from qedit.cache.files.atomic import LEFTOVER
from qedit.cache.files.claims import CLAIMS
from qedit.cache.files.lock import LOCK_FILE, Holder, holder_of, new_holder
from qedit.cache.files.owner import Owner, this_process
from qedit.cache.store.store import Store
from qedit.pipeline.upkeep.caches import stores_in
from qedit.pipeline.upkeep.collect import alone, clear, collect
from qedit.stages.stores import pins
from qedit.stages.stores.pins import RUNS, pin_before_writing, record_file
from qedit.stages.stores.run import Run

BF16 = ("--set", "vae_dtype=bf16", "--set", "text_encoder_dtype=fp32")
OTHER_RUN = ("--set", "output_dir=out2")
ELSEWHERE = replace(this_process(), host="elsewhere", pid=12)


def _shown() -> dict[str, Any]:
    return said(with_files("gc", "--json"))


def _store(folder: Path, kind: str, *, besides: Path | None = None) -> Store:
    """The one store of a kind, or the one that is not at `besides`."""
    (store,) = (one for one in stores_in(folder / "caches" / kind) if one.path != besides)
    return store


def _elsewhere(doing: str) -> Holder:
    return replace(new_holder(doing), owner=ELSEWHERE)


def _stop_after_the_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Store.add

    def once(self: Store, *args: Any) -> None:
        add(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", once)


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_what_a_run_made_before_it_was_stopped_is_kept(
    copy: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _stop_after_the_first_part(patch)
        with_files(stage, *BF16, *OTHER_RUN, expect=130)
    folders = (copy / "caches").glob("*/*/")
    made = [store for folder in folders for store in stores_in(folder) if len(store)]
    assert len(made) == 5  # four of this run, and what was made of one part
    found = said(with_files("gc", "--yes", "--json"))
    assert (found["rows"], found["stores"]) == (0, [])
    assert sum(bool(len(Store(one.path.parent, one.recipe, one.layout))) for one in made) == 5


def test_who_begins_to_fill_waits_for_gc_to_end(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gc has found inside its locks holds until it has removed it."""
    monkeypatch.setattr(pins, "LOCK_PATIENCE_SECONDS", 0.0)
    run, other = Run(loaded()), Run(loaded("output_dir=out2"))
    stores = run.stores.tails.stores()
    with alone(run) as caches:
        found = collect(caches)
        for store in stores:
            assert holder_of(store.path).doing == holder_of(store.path.parent).doing == "qedit gc"
        with pytest.raises(Locked, match="qedit gc"):
            pin_before_writing(other, stores)
        clear(found)
    pin_before_writing(other, stores)


def _fills_embeds(folder: Path) -> None:
    """Somebody fills prefixes and tails: the claims are in the store of prefixes."""
    path = _store(folder, "conditioning_image_embeds/edited").path / CLAIMS / "strange~0.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**asdict(_elsewhere("qedit cache-embeds")), "keys": ["0"]}))


@pytest.mark.parametrize("options", [(), ("--compact",)], ids=["gc", "compact"])
def test_gc_of_tails_is_refused_while_a_process_fills(copy: Path, options: tuple[str, ...]) -> None:
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("pair")
    with_files("cache-embeds")
    assert _shown()["rows"] == 1
    _fills_embeds(copy)
    assert "elsewhere" in with_files("gc", *options, "--yes", expect=6).stderr
    assert _shown()["rows"] == 1


def test_drop_of_tails_is_refused_while_a_process_fills(copy: Path) -> None:
    tails = _store(copy, "text_embeds/edited")
    flip(next(tails.path.rglob("embeds/c.*")), 9)
    _fills_embeds(copy)
    assert "elsewhere" in with_files("verify", "--drop", expect=6).stderr
    with_files("unlock", "--yes")
    with_files("verify", "--drop")
    with_files("verify")


def test_gc_waits_for_a_training_whose_table_may_have_been_replaced(copy: Path) -> None:
    for stage in ("cache-vae", "cache-embeds"):
        with_files(stage, *OTHER_RUN)
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("pair")
    assert _shown()["rows"] == 1
    for name in ("out", "out2"):
        lock = copy / name / LOCK_FILE
        lock.parent.mkdir()
        lock.write_text(json.dumps(asdict(_elsewhere("train"))))
        error = with_files("gc", "--yes", expect=6).stderr
        assert "12 on elsewhere (train" in error
        assert str(lock.parent) in error
        with_files("unlock", "--yes")
        assert not lock.exists()
    dead = replace(new_holder("train"), owner=replace(this_process(), started="1"))
    (copy / "out" / LOCK_FILE).write_text(json.dumps(asdict(dead)))
    assert said(with_files("gc", "--yes", "--json"))["rows"] == 1


@pytest.fixture
def beside(copy: Path) -> Store:
    """A store of latents by another recipe, with rows in several parts."""
    here = _store(copy, "vae/edited").path
    with_files("cache-vae", *BF16)
    return _store(copy, "vae/edited", besides=here)


def test_damage_in_another_recipes_store_is_in_nobodys_way(copy: Path, beside: Store) -> None:
    part = beside.part_paths()[0]
    flip(part / "rows.parquet", 40)
    for line in said(with_files("status", "--json"))["results"]:
        assert line["wanted"] == line["kept"] or line["what"] == "steps trained"
    assert said(with_files("cache-vae", "-n", "--json"))["orphaned"] == 0
    assert str(part.relative_to(copy)) in with_files("verify", expect=5).stderr
    assert "all of it, damaged as it is" in with_files("gc").stdout
    with_files("gc", "--yes")
    assert not beside.path.exists()
    with_files("verify")


def test_damage_in_a_store_that_another_run_uses_is_dropped_or_collected(
    copy: Path, beside: Store
) -> None:
    with_files("cache-vae", *BF16, *OTHER_RUN)
    parts = beside.part_paths()
    flip(parts[0] / "rows.parquet", 40)
    assert f"{parts[0].relative_to(copy)}: a damaged part" in with_files("gc").stdout
    with_files("gc", "--yes")
    assert [path.exists() for path in parts] == [False, *(True for _ in parts[1:])]
    assert said(with_files("cache-vae", *BF16, *OTHER_RUN, "--json"))["computed"] > 0
    flip(next(parts[1].glob("latents/c.*")), 5)
    assert "none of the present tables" in with_files("verify", expect=5).stderr
    with_files("verify", "--drop")
    with_files("verify")
    assert said(with_files("cache-vae", *BF16, *OTHER_RUN, "--json"))["computed"] == 1


@pytest.mark.parametrize("recipe", ["{not json", "[]", '{"rows": []}', None])
def test_a_store_whose_recipe_cannot_be_read_goes_if_nobody_asks_for_it(
    copy: Path, beside: Store, recipe: str | None
) -> None:
    path = beside.path / "recipe.json"
    path.unlink()
    if recipe is not None:
        path.write_text(recipe)
    with_files("status")
    with_files("status", "--set", "vae_dtype=bf16", "--set", "seed=1")
    shown = with_files("gc").stdout
    assert f"{beside.path.relative_to(copy)}: its recipe.json cannot be read" in shown
    with_files("gc", "--yes")
    assert not beside.path.exists()


def test_a_store_whose_recipe_cannot_be_read_stays_for_the_run_that_asks_for_it(
    copy: Path, beside: Store
) -> None:
    with_files("cache-vae", *BF16, *OTHER_RUN)
    (beside.path / "recipe.json").write_text("{")
    assert "recipe.json" not in with_files("gc", "--yes").stdout
    assert beside.path.exists()


def test_training_on_missing_rows_says_so_whatever_lies_beside(copy: Path) -> None:
    prefixes = copy / "caches" / "conditioning_image_embeds" / "edited"
    (prefixes / ("0" * 16)).mkdir()
    (prefixes / ("0" * 16) / "recipe.json").write_text("{")
    error = with_files("train", "--set", "text_encoder_dtype=fp32", expect=4).stderr
    assert "qedit cache-embeds" in error


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _other_letter(data: bytes) -> bytes:
    return data.replace(b"/pairs/", b"/pears/", 1)


def _no_list(data: bytes) -> bytes:
    record = json.loads(data)
    del record["crc32c"]
    for pin in record["pins"].values():
        pin["pairs"] = pin["pairs"][0]
    return json.dumps(record).encode()


@pytest.mark.parametrize("spoil", [_cut, _other_letter, _no_list])
def test_gc_is_refused_where_a_record_cannot_be_read(
    copy: Path, other_record: Path, spoil: Callable[[bytes], bytes]
) -> None:
    assert spoil(other_record.read_bytes()) != other_record.read_bytes()
    other_record.write_bytes(spoil(other_record.read_bytes()))
    for options in ((), ("--yes",)):
        error = with_files("gc", *options, expect=5).stderr
        assert str(other_record) in error
        assert "delete that file" in error
    assert str(other_record) in with_files("verify", expect=5).stderr
    assert "what no table names is not known" in with_files("status").stdout
    assert said(with_files("cache-embeds", "-n", "--json"))["orphaned"] is None
    assert "orphaned rows not known" in with_files("cache-embeds", "-n").stdout
    with_files("unlock")
    with_files("cache-embeds", *OTHER_RUN)
    assert _shown()["rows"] == 1  # the tail of the former caption


def test_a_note_of_an_earlier_version_is_read(copy: Path, other_record: Path) -> None:
    (store,) = as_old_notes(copy / other_record)
    (note,) = (store / OLD_NOTES).iterdir()
    fields = json.loads(note.read_bytes())
    for field in ("crc32c", "also"):
        del fields[field]
    note.write_text(json.dumps(fields))
    (copy / "edited" / "p3.txt").write_text("another one too")
    with_files("pair")
    assert _shown()["rows"] == 2  # both runs share the table


def _pairs_elsewhere(copy: Path) -> Path:
    """Another run, with pairs tables of its own and the same stores, wants what this one did."""
    folders = copy / "caches" / "vae"
    names = ("edited", "reference-a")
    sets = [f"data.{name}.cache_dir_vae={folders / name}" for name in names]
    other = [
        word for one in ("cache_dir=other", "output_dir=out2", *sets) for word in ("--set", one)
    ]
    for stage in ("pair", "cache-vae"):
        with_files(stage, *other)
    for path in copy.glob("*/p1.*"):
        path.unlink()
    with_files("pair")
    return copy / "other" / "pairs"


def test_gc_is_refused_where_another_runs_tables_are_gone(copy: Path) -> None:
    tables = _pairs_elsewhere(copy)
    kept = _shown()
    assert not any("/vae/" in name for name in kept["stores"])
    tables.rename(copy / "not-mounted")
    error = with_files("gc", "--yes", expect=4).stderr
    assert f"The run in {copy / 'out2'} uses these caches" in error
    assert "its pairs tables are gone" in error
    records = list(copy.glob(f"caches/vae/*/{RUNS}/*.json"))
    others = [path for path in records if f'"{copy / "out2"}"' in path.read_text()]
    assert len(others) == 2  # all of them at once
    assert all(error.count(str(path.relative_to(copy))) == 2 for path in others)
    assert with_files("status").stdout.count("are gone") == 1
    (copy / "not-mounted").rename(tables)
    assert _shown() == kept
    (manifest,) = tables.rglob("manifest.json")
    manifest.rename(copy / "manifest.json")
    assert "are gone" in with_files("gc", "--yes", expect=4).stderr


def test_a_table_without_that_of_what_was_rejected_counts(copy: Path) -> None:
    tables = _pairs_elsewhere(copy)
    kept = _shown()
    (rejected,) = tables.rglob("rejected-*.parquet")
    rejected.unlink()
    assert _shown() == kept
    (pairs,) = tables.rglob("pairs-*.parquet")
    flip(pairs, 40)
    assert str(pairs) in with_files("gc", "--yes", expect=5).stderr
    pairs.unlink()
    assert f"{pairs} is gone" in with_files("gc", "--yes", expect=5).stderr


def test_gc_of_one_run_leaves_no_record_that_is_in_anothers_way(copy: Path) -> None:
    """Its former tables may go with it: what it recorded of them is written anew."""
    for stage in ("cache-vae", "cache-embeds"):
        with_files(stage, *OTHER_RUN)
    larger = ("--set", "data.edited.resolution=96")
    for stage in ("pair", "cache-vae"):
        with_files(stage, *larger, *OTHER_RUN)
    cache_rows(*larger)
    shown = said(with_files("gc", "--yes", "--json", *larger, *OTHER_RUN))
    assert shown["files"]  # the former table
    assert said(with_files("gc", "--json", *larger))["rows"] == 0


def _left(folder: Path, owner: Owner, name: str) -> Path:
    path = folder / name.format(owner=owner)
    (path / "latents").mkdir(parents=True)
    (path / "latents" / "c.0.0.0.0").write_bytes(b"x" * 1000)
    return path


def _age(path: Path, *, hours: float) -> None:
    """Have all there is in a tree be changed so long ago."""
    when = time.time() - hours * 3600
    for one in (path, *path.rglob("*")):
        os.utime(one, (when, when))


def test_what_others_left_is_shown_and_removed_when_told(copy: Path) -> None:
    spool, parts = copy / "caches" / "spool", _store(copy, "vae/edited").parts_folder
    dead = replace(this_process(), started="1")
    left = [
        _left(spool, ELSEWHERE, "{owner}~0" + LEFTOVER),
        _left(spool, dead, "{owner}~0" + LEFTOVER),
        _left(parts, ELSEWHERE, "{owner}~7"),
        _left(parts, ELSEWHERE, ".gone~{owner}~8" + LEFTOVER),
        _left(parts, replace(this_process(), space="7"), "{owner}~7"),
    ]
    mine = _left(spool, this_process(), "{owner}~0" + LEFTOVER)
    _age(left[0], hours=25)
    shown = _shown()
    assert set(map(Path, shown["files"])) == {path.relative_to(copy) for path in left}
    assert shown["bytes"] == 5000
    told = with_files("gc").stdout
    assert told.count("process 12 on elsewhere, which cannot be asked from here") == 3
    assert "which has ended" in told
    with_files("gc", "--yes")
    assert not any(path.exists() for path in left)
    assert mine.exists()
    assert with_files("gc").stdout == "Nothing to remove.\n"


@pytest.mark.parametrize(
    ("changed", "hours", "when"),
    [
        (".", 0, " s ago"),
        ("latents", 2.51, "2 h 30 min ago"),
        ("latents/c.0.0.0.0", 23.9, "23 h 54 min ago"),
        ("latents/c.0.0.0.0", -48, "at a time still to come"),
    ],
)
def test_what_a_process_elsewhere_may_be_at_is_left_alone(
    copy: Path, changed: str, hours: float, when: str
) -> None:
    """Nobody locks a spool: only its age can tell whether a process of another host uses it."""
    path = _left(copy / "caches" / "spool", ELSEWHERE, "{owner}~0" + LEFTOVER)
    _age(path, hours=72)
    changed_at = time.time() - hours * 3600
    os.utime(path / changed, (changed_at, changed_at))
    shown = _shown()
    assert (shown["files"], shown["bytes"]) == ([], 0)
    assert shown["left_alone"] == [str(path.relative_to(copy))]
    for options in ((), ("--yes",)):
        told, nothing = with_files("gc", *options).stdout.splitlines()
        assert told.startswith(f"{path.relative_to(copy)}: of process 12 on elsewhere")
        assert when in told
        assert "left alone until nothing has for 24 h" in told
        assert nothing == "Nothing to remove."
    assert (path / "latents" / "c.0.0.0.0").exists()
    _age(path, hours=24.1)
    with_files("gc", "--yes")
    assert not path.exists()


def test_a_file_that_a_process_elsewhere_may_be_writing_is_left_alone(copy: Path) -> None:
    """Beside the stores, where nobody locks either."""
    path = copy / "caches" / f".digests.json~{ELSEWHERE}~0{LEFTOVER}"
    path.write_text("{")
    assert str(path.relative_to(copy)) in with_files("gc", "--yes").stdout
    assert path.exists()
    _age(path, hours=25)
    with_files("gc", "--yes")
    assert not path.exists()


def test_a_container_that_cannot_be_asked_is_not_said_to_run(copy: Path) -> None:
    """It has this host's name and was started anew: its processes have numbers of their own."""
    holder = replace(new_holder("x"), owner=replace(this_process(), space="7"))
    path = _store(copy, "vae/edited").path / CLAIMS / "strange~0.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**asdict(holder), "keys": ["0"]}))
    with_files("gc", "--yes", expect=6)
    with_files("unlock", "--yes")
    assert not path.exists()


def test_gc_is_refused_before_pair_has_run_for_new_settings(copy: Path) -> None:
    """The table that names what they want is not there yet: every row would seem unwanted."""
    changed = ("--set", "data.edited.caption_strategy=filename")
    for options in ((), ("--yes",)):
        error = with_files("gc", *options, *changed, expect=4).stderr
        assert "There is no pairs table of dataset edited with these settings yet" in error
    assert said(with_files("cache-vae", "--json"))["computed"] == 0
    with_files("pair", *changed)
    shown = said(with_files("gc", "--json", *changed))
    assert shown["rows"] == 4  # the tails of the former captions
    assert len(shown["files"]) == 1  # and the table that names them


@pytest.mark.parametrize("old", [False, True], ids=["record", "old notes"])
def test_caches_that_were_moved_to_another_disk_keep_other_runs_records(
    copy: Path, other_record: Path, old: bool
) -> None:
    """There they have neither the path nor the inode that the records name."""
    if old:
        as_old_notes(copy / other_record)
    shutil.copytree("caches", "copied")
    elsewhere = ("--set", "cache_dir=copied")
    shown = said(with_files("gc", "--json", *elsewhere))
    assert shown["rows"] == 1
    assert shown["kept_for"] == [str(copy / "out2")]  # it may go on in the copy
    (said_so,) = shown["moved"]
    assert said_so.startswith(f"{copy / 'copied'} is a copy of {copy / 'caches'}: ")
    shutil.rmtree("caches")
    shown = said(with_files("gc", "--json", *elsewhere))
    assert shown["rows"] == 1  # its tables have moved with them, and name what this run's do
    assert shown["kept_for"] == [str(copy / "out2")]
    (said_so,) = shown["moved"]
    assert said_so.startswith(f"{copy / 'caches'} was moved to {copy / 'copied'}: ")
    (copy / "copied").rename("caches")
    assert _shown()["rows"] == 1  # the other run uses the table that this one does
    assert old or other_record.is_file()


def test_moved_caches_are_refused_whose_tables_did_not_move_with_them(copy: Path) -> None:
    tables = _pairs_elsewhere(copy)
    shutil.copytree("caches", "copied")
    shutil.rmtree("caches")
    names = ("edited", "reference-a")
    sets = [f"data.{name}.cache_dir_vae=copied/vae/{name}" for name in names]
    elsewhere = ["--set", "cache_dir=copied", *(word for one in sets for word in ("--set", one))]
    assert said(with_files("gc", "--json", *elsewhere))["kept_for"] == [str(copy / "out2")]
    shutil.rmtree(tables)
    error = with_files("gc", "--yes", *elsewhere, expect=4).stderr
    assert f"The run in {copy / 'out2'} uses these caches" in error


def _add_a_dataset(folder: Path) -> None:
    """The same samples once more, in folders of their own."""
    data = json.loads((folder / "data.json").read_text())
    for one in list(data):
        other = {**one, "id": f"more-{one['id']}", "instance_data_dir": f"more-{one['id']}"}
        if "conditioning_data" in one:
            other["conditioning_data"] = [f"more-{name}" for name in one["conditioning_data"]]
        shutil.copytree(folder / one["instance_data_dir"], folder / other["instance_data_dir"])
        data.append(other)
    (folder / "data.json").write_text(json.dumps(data))


def test_rows_of_former_settings_are_freed_after_a_dataset_was_added(copy: Path) -> None:
    """A run is its output_dir: what it recorded before is not another run's."""
    record = record_file(Run(loaded()), _store(copy, "vae/edited").path.parent)
    before = record.read_bytes()
    (store,) = as_old_notes(record)
    (note,) = (store / OLD_NOTES).iterdir()
    former = note.rename(note.with_name("0123456789abcdef.json"))  # as the earliest named it
    record.write_bytes(before)
    _add_a_dataset(copy)
    names = ("edited", "more-edited")
    larger = [word for name in names for word in ("--set", f"data.{name}.resolution=96")]
    for stage in ("pair", "cache-vae"):
        with_files(stage, *larger)
    shown = said(with_files("gc", "--yes", "--json", *larger))
    assert (shown["rows"], len(shown["files"])) == (4, 1)  # the targets at their former size
    assert (record.is_file(), former.exists()) == (True, False)


def test_what_a_run_that_has_only_paired_names_is_kept(copy: Path) -> None:
    """Another run in the same folders has gone on to other captions and another size."""
    larger = ("--set", "data.edited.resolution=96")
    with_files("pair", *OTHER_RUN)
    cache_rows(*larger)
    shown = said(with_files("gc", "--yes", "--json", *larger))
    assert (shown["rows"], shown["files"]) == (0, [])
    for stage in ("cache-vae", "cache-embeds"):
        assert said(with_files(stage, "--json", *OTHER_RUN))["computed"] == 0


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_a_run_that_finds_all_rows_made_keeps_them_before_it_looks(
    copy: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `gc` takes them between the look and the record."""
    monkeypatch.setattr(pins, "LOCK_PATIENCE_SECONDS", 0.0)
    with alone(Run(loaded())):
        assert "qedit gc" in with_files(stage, *OTHER_RUN, expect=6).stderr
        with_files(stage)  # it is recorded, and needs no lock
    with_files(stage, *OTHER_RUN)


def test_a_stage_that_fails_for_want_of_pairs_leaves_no_record(copy: Path) -> None:
    for stage in ("cache-vae", "cache-embeds"):
        with_files(stage, *OTHER_RUN, "--set", "data.edited.resolution=96", expect=4)
    assert _shown()["rows"] == 0


def test_a_tree_that_was_being_removed_goes_from_a_folder_without_a_store(copy: Path) -> None:
    dead = replace(this_process(), started="1")
    store = _store(copy, "text_embeds/edited")
    left = [store.path.with_name(f".{store.path.name}~{dead}~1{LEFTOVER}")]
    store.path.rename(left[0])
    left.append(_left(copy / "caches" / "pairs", dead, ".gone~{owner}~2" + LEFTOVER))
    assert set(map(Path, _shown()["files"])) == {path.relative_to(copy) for path in left}
    with_files("gc", "--yes")
    assert not any(path.exists() for path in left)
