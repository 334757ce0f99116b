"""verify, gc and unlock as a user meets them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from damage import flip
from small_run import draw, enter_copy, make_run, said, with_files

from qedit.cache.files.atomic import LEFTOVER
from qedit.cache.files.claims import CLAIMS
from qedit.cache.files.lock import new_holder
from qedit.cache.files.owner import this_process
from qedit.cache.format.index import write_index
from qedit.pipeline.upkeep.caches import stores_in
from qedit.stages.samples.schema import samples_in
from qedit.stages.stores.pins import RUNS, read_records


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs with one reference each, cached and trained on."""
    folder = make_run(tmp_path_factory.mktemp("finished"), flavour="edit-v2")
    with chdir(folder):
        with_files("run")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_copy(finished, tmp_path / "elsewhere", monkeypatch)


def _shard(folder: Path, dataset: str) -> Path:
    found = sorted((folder / "caches" / "vae" / dataset).rglob("latents/c.*"))
    return next(path for path in found if _shape(path)[0] == 1)


def _shape(shard: Path) -> list[int]:
    return json.loads((shard.parent / "zarr.json").read_text())["shape"]


def test_whole_caches_are_found_whole(copy: Path) -> None:
    found = said(with_files("verify", "--json"))
    assert found["damaged"] == []
    assert found["parts"] >= 4
    assert said(with_files("verify", "--sample", "10", "--json"))["damaged"] == []


def test_a_damaged_latent_is_named_dropped_and_made_anew(copy: Path) -> None:
    flip(_shard(copy, "edited"), 5)
    error = with_files("verify", expect=5).stderr
    assert "p1.png" in error or "p2.png" in error
    assert "p0.png" not in error
    assert "qedit verify --drop" in error
    told = with_files("verify", "--drop").stdout
    assert "need what is damaged: p" in told
    assert "No run was trained on damaged rows" in told
    assert with_files("verify").exit_code == 0
    assert said(with_files("cache-vae", "--json"))["computed"] == 1
    assert said(with_files("cache-embeds", "--json"))["computed"] == 0


def test_a_spoilt_index_is_named_and_given_up(copy: Path) -> None:
    (store,) = stores_in(copy / "caches" / "vae" / "edited")
    listing = store.listing()
    assert listing is not None
    flip(write_index(store.path, listing, store=store.fingerprint), 50)
    assert "index-" in with_files("verify", expect=5).stderr
    assert "index-" in with_files("verify", "--drop").stdout
    with_files("verify")
    assert said(with_files("cache-vae", "--json"))["computed"] == 0


def test_a_part_whose_table_is_gone_is_named_too(copy: Path) -> None:
    (_shard(copy, "edited").parents[1] / "rows.parquet").unlink()
    error = with_files("verify", expect=5).stderr
    assert "rows.parquet is missing" in error
    assert "p1.png" in error or "p2.png" in error
    with_files("verify", "--drop")
    assert said(with_files("cache-vae", "--json"))["computed"] == 1


def test_a_lost_shard_is_told_once_however_many_rows_were_in_it(copy: Path) -> None:
    (shard,) = (copy / "caches" / "text_embeds" / "edited").rglob("embeds/c.*")
    shard.unlink()
    error = with_files("verify", expect=5).stderr
    file, rows, *_ = error.splitlines()
    assert file.endswith("the file embeds/c.0.0 is missing")
    assert re.search(r"^8 rows of \S+, the first [0-9a-f]{32}: the file c.0.0 is missing$", rows)
    assert error.count("c.0.0 is missing") == 2
    assert all(f"p{number}.png" in error for number in range(4))
    with_files("verify", "--drop")
    with_files("cache-embeds")
    with_files("verify")


def test_what_was_being_dropped_and_recorded_by_a_process_that_died_goes_too(copy: Path) -> None:
    (store,) = stores_in(copy / "caches" / "text_embeds" / "edited")
    dead = replace(this_process(), started="1")
    gone = store.parts_folder / f".part~{dead}~19{LEFTOVER}"
    gone.mkdir()
    (record,) = (store.path.parent / RUNS).glob("*.json")
    begun = record.with_name(f".{record.name}~{dead}~6{LEFTOVER}")
    record.rename(begun)
    with_files("verify")
    assert gone.exists()  # it only looks
    with_files("verify", "--drop")
    assert not gone.exists()
    with_files("cache-embeds")
    (written,) = record.parent.iterdir()  # by another name, since the copy is another run
    assert written.suffix == ".json"


def test_damaged_tables_and_checkpoints_are_found(copy: Path) -> None:
    (table,) = (copy / "caches" / "pairs" / "edited").rglob("pairs-*.parquet")
    weights = next((copy / "out").glob("checkpoint-*/weights.safetensors"))
    flip(weights, -1)
    assert "weights.safetensors is not as it was written" in with_files("verify", expect=5).stderr
    flip(table, 40)
    assert table.name in with_files("verify", expect=5).stderr


@pytest.mark.parametrize(
    ("name", "written", "spoilt", "said_of_it"),
    [
        ("out/checkpoint-*/state.json", '"step": 3', '"step": 2', "state.json cannot be read"),
        ("caches/pairs/edited/*/manifest.json", '"samples": 4', '"samples": 5', "manifest"),
        ("caches/pairs/runs/*.json", '"output_dir": "', '"output_dir": "/', "cannot"),
    ],
)
def test_verify_reads_the_checksums_of_small_files_too(
    copy: Path, name: str, written: str, spoilt: str, said_of_it: str
) -> None:
    (path,) = copy.glob(name)
    assert written in path.read_text()
    path.write_text(path.read_text().replace(written, spoilt))
    error = with_files("verify", expect=5).stderr
    assert str(path.relative_to(copy)) in error
    assert said_of_it in error


@pytest.mark.parametrize(
    "kind",
    [
        *("target", "tail"),
        *(pytest.param(name, marks=pytest.mark.full) for name in ("reference", "prefix")),
    ],
)
def test_training_ends_at_a_damaged_row_and_names_it(copy: Path, kind: str) -> None:
    """Four steps of one sample each draw every one of the four samples."""
    (table,) = (copy / "caches" / "pairs" / "edited").rglob("pairs-*.parquet")
    sample = samples_in(pq.read_table(table))[2]
    where, key = {
        "target": ("vae/edited", sample.target.latent_key),
        "reference": ("vae/reference-a", sample.references[0].latent_key),
        "prefix": ("conditioning_image_embeds/edited", sample.prefix_key),
        "tail": ("text_embeds/edited", sample.tail_key(sample.captions[0])),
    }[kind]
    (store,) = stores_in(copy / "caches" / where)
    part, row = store._find(key)
    shard, first, _ = part._array._place(row.start, row.length)
    flip(Path(shard.path), shard.offsets[first] + 7)
    error = with_files(
        *("train", "--set", "output_dir=again", "--set", "max_train_steps=4"), expect=5
    ).stderr
    assert f"A row of sample {sample.name} is damaged" in error
    assert "qedit verify --drop" in error


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Have the disk refuse to read the file at `path` while the block runs."""

    def refusing(really: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(file, str | os.PathLike) and Path(file).absolute() == path:
                raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(file))
            return really(file, *rest, **named)

        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refusing(os.open))
        patch.setattr(io, "open", refusing(io.open))
        yield


@pytest.mark.parametrize(
    ("name", "said_of_it"),
    [
        ("parts/*/latents/c.0.0.0.0", "the disk cannot read it (Input/output error)"),
        ("parts/*/latents/zarr.json", "zarr.json is lost: the disk cannot read it"),
        ("parts/*/rows.parquet", "the disk cannot read it (Input/output error)"),
        ("parts/*/manifest.json", "the disk cannot read it (Input/output error)"),
        ("recipe.json", "it is not the recipe"),
        ("../runs/*.json", "it cannot be read: the disk cannot read it"),
        ("../../../../out/checkpoint-*/state.json", "state.json cannot be read"),
        (
            "../../../../out/checkpoint-*/weights.safetensors",
            "weights.safetensors is not",
        ),
        ("../../../pairs/edited/*/pairs-*.parquet", "is not what was written"),
    ],
)
def test_verify_names_what_the_disk_cannot_read(copy: Path, name: str, said_of_it: str) -> None:
    (store,) = stores_in(copy / "caches" / "vae" / "edited")
    path = Path(os.path.abspath(next(iter(sorted(store.path.glob(name))))))
    with _unreadable(path):
        assert said_of_it in with_files("verify", expect=5).stderr
    with_files("verify")


def test_training_and_status_say_that_the_disk_fails(copy: Path) -> None:
    (store,) = stores_in(copy / "caches" / "text_embeds" / "edited")
    (shard,) = store.path.glob("parts/*/embeds/c.0.0")
    again = ("train", "--set", "output_dir=again")
    with _unreadable(shard):
        error = with_files(*again, expect=5).stderr
    assert "A row of sample p" in error
    assert "the disk cannot read it" in error
    (manifest,) = copy.glob("caches/pairs/edited/*/manifest.json")
    with _unreadable(manifest):
        error = with_files("status", expect=1).stderr
    assert "Input/output error" in error
    assert "defect" not in error


def test_a_lost_manifest_names_the_samples_whose_rows_it_made_count(copy: Path) -> None:
    """And not those whose references' rows lie in another store of the same recipe."""
    part = _shard(copy, "edited").parents[1]
    (key,) = pq.read_table(part / "rows.parquet")["key"].to_pylist()
    (part / "manifest.json").unlink()
    (table,) = (copy / "caches" / "pairs" / "edited").rglob("pairs-*.parquet")
    samples = samples_in(pq.read_table(table))
    hurt = [sample.name for sample in samples if sample.target.latent_key == key]
    assert len(hurt) == 1
    error = with_files("verify", expect=5).stderr
    assert f"need what is damaged: {hurt[0]}\n" in error


def test_gc_shows_what_it_would_remove_and_removes_it_when_told(copy: Path) -> None:
    nothing = said(with_files("gc", "--json"))
    assert (nothing["rows"], nothing["stores"], nothing["removed"]) == (0, [], False)
    draw(copy / "edited" / "p1.png", (128, 72), seed=999)
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("run", "--set", "output_dir=out2")
    shown = said(with_files("gc", "--json"))
    assert shown["rows"] == 2  # one latent, one tail
    assert shown["bytes"] > 0
    assert said(with_files("gc", "--json"))["rows"] == 2
    assert said(with_files("gc", "--yes", "--json"))["removed"]
    assert said(with_files("gc", "--json"))["rows"] == 0
    for stage in ("cache-vae", "cache-embeds"):
        assert said(with_files(stage, "--json"))["computed"] == 0
    with_files("verify")


def test_gc_keeps_what_another_run_in_the_same_caches_names(copy: Path) -> None:
    """A second run has a pairs folder of its own, but shares the folder of the latents."""
    shared = f"data.edited.cache_dir_vae={copy / 'caches/vae/edited'}"
    other = ("--set", "cache_dir=other", "--set", "output_dir=out2", "--set", shared)
    for stage in ("pair", "cache-vae"):
        with_files(stage, *other)
    for path in copy.glob("*/p1.*"):
        path.unlink()
    with_files("pair")
    store = str(copy / "caches" / "vae" / "edited")
    shown = said(with_files("gc", "--json"))
    # the target's latent is wanted by the other run; all else of the sample is not
    assert shown["rows"] == 1 + 1 + 2
    assert not any(str(Path(name).resolve()).startswith(store) for name in shown["stores"])


def test_gc_removes_stores_of_recipes_that_nobody_asks_for(copy: Path) -> None:
    bf16 = ("--set", "vae_dtype=bf16")
    with_files("cache-vae", *bf16)
    shown = said(with_files("gc", "--json"))
    assert shown["rows"] == 8
    # from the other side, the run in out still names the stores it was trained from
    assert said(with_files("gc", "--json", *bf16))["rows"] == 0
    with_files("gc", "--yes")
    assert said(with_files("cache-vae", "--json"))["computed"] == 0
    assert said(with_files("cache-vae", "--json", *bf16))["computed"] == 8


def test_records_hold_in_copied_and_in_moved_caches(copy: Path) -> None:
    """The record of the run in `out` was copied, and no stage of it has run since."""
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("run", "--set", "output_dir=out2")
    assert said(with_files("gc", "--json"))["rows"] == 1
    other = ("--set", "output_dir=out3")
    with_files("cache-vae", *other)
    with_files("cache-embeds", *other)
    (copy / "caches").rename(copy / "moved")
    (store,) = stores_in(copy / "moved" / "vae" / "edited")
    assert {Path(found.output_dir).name for found in read_records(store.path.parent)} == {
        "out",
        "out2",
        "out3",
    }


def test_gc_removes_tables_of_former_settings_and_what_only_they_name(copy: Path) -> None:
    larger = ("--set", "data.edited.resolution=96")
    for stage in ("pair", "cache-vae"):
        with_files(stage, *larger)
    shown = said(with_files("gc", "--json", *larger))
    assert shown["rows"] == 4  # the targets at their former size
    (former,) = [Path(name) for name in shown["files"]]
    assert (former / "manifest.json").is_file()
    # another run that shares the tables' folder still names the former one
    other = ("--set", "output_dir=out2")
    with_files("cache-vae", *other)
    kept = said(with_files("gc", "--json", *larger))
    assert (kept["rows"], kept["files"]) == (0, [])
    for records in (copy / "caches").glob(f"*/*/{RUNS}"):
        shutil.rmtree(records)
    assert said(with_files("gc", "--yes", "--json", *larger))["removed"]
    assert not former.exists()
    assert said(with_files("cache-vae", "--json", *larger))["computed"] == 0


def test_gc_compact_joins_parts(copy: Path) -> None:
    def parts() -> int:
        return len(list((copy / "caches" / "text_embeds").rglob("manifest.json")))

    for number in range(3):
        (copy / "edited" / "p3.txt").write_text(f"caption {number}\nmake it number 3\n")
        with_files("pair")
        with_files("cache-embeds")
    assert parts() == 4
    with_files("gc", "--compact", "--yes")
    assert parts() == 1
    assert said(with_files("cache-embeds", "--json"))["computed"] == 0


def test_unlock_leaves_the_living_alone(copy: Path) -> None:
    (store,) = stores_in(copy / "caches" / "vae" / "edited")
    mine, strange = (store.path / CLAIMS / name for name in ("mine~0.json", "strange~0.json"))
    holder = new_holder("testing")
    elsewhere = replace(holder, owner=replace(holder.owner, host="elsewhere"))
    for path, who in ((mine, holder), (strange, elsewhere)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**asdict(who), "keys": ["0"]}))
    shown = with_files("unlock")
    assert "elsewhere" in shown.stdout
    assert strange.exists()
    assert f"process {os.getpid()}" in with_files("unlock", "--yes").stderr
    assert mine.exists()
    assert not strange.exists()


def test_gc_is_refused_while_somebody_fills(copy: Path) -> None:
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("pair")
    (store,) = {path.parents[2] for path in (copy / "caches" / "text_embeds").rglob("rows.parquet")}
    holder = replace(new_holder("x"), owner=replace(new_holder("x").owner, host="elsewhere"))
    (store / CLAIMS).mkdir(exist_ok=True)
    (store / CLAIMS / "strange~0.json").write_text(json.dumps({**asdict(holder), "keys": ["0"]}))
    assert "elsewhere" in with_files("gc", "--yes", expect=6).stderr


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_shards_make_everything_between_them(copy: Path, stage: str) -> None:
    for name in ("vae", "text_embeds", "conditioning_image_embeds"):
        shutil.rmtree(copy / "caches" / name)
    found = [said(with_files(stage, "--shard", f"{n}/3", "--json")) for n in (1, 2, 3)]
    assert all(one["kept"] + one["computed"] == one["wanted"] for one in found)
    assert sum(one["computed"] for one in found) == (8 if stage == "cache-vae" else 12)
    assert said(with_files(stage, "--json"))["computed"] == 0
    assert "Invalid --shard '4/3'" in with_files(stage, "--shard", "4/3", expect=2).stderr


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_no_room_is_said_before_anything_is_encoded(
    copy: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vae", "text_embeds"):
        shutil.rmtree(copy / "caches" / name)
    usage = shutil.disk_usage(copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = with_files(stage, expect=1).stderr
    assert "0.0 GB left" in error
    assert "cache_dir" in error
    assert not (copy / "caches" / "vae").exists()


def test_status_says_why_rows_do_not_count_and_what_is_orphaned(copy: Path) -> None:
    draw(copy / "edited" / "p1.png", (128, 72), seed=999)
    with_files("pair")
    line = next(one for one in said(with_files("status", "--json"))["results"] if one["orphaned"])
    assert (line["what"], line["wanted"], line["kept"], line["orphaned"]) == ("latents", 8, 7, 1)
    told = with_files("status", "--set", "vae_dtype=bf16").stdout
    assert "was made with another precision (vae_dtype" in told
    assert "0 of 8, 8 missing" in told
