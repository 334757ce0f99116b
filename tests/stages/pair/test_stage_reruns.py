"""Reruns of `pair`: only what changed is opened, and only what is missing is written."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damage import flip
from picture_pairs import (
    configured,
    damage,
    draw,
    folder,
    go,
    pairs,
    table,
    written,
)

from qedit.cache.errors import Damaged, Locked, NotComplete
from qedit.cache.files.lock import writer_lock
from qedit.stages.pair import pictures
from qedit.stages.pair.picture_records import MEMORY_FILE
from qedit.stages.samples.table import manifest_in


def test_an_unchanged_rerun_opens_and_writes_nothing(monkeypatch):
    pairs(4)
    configuration = configured()
    go(configuration)
    before = written()
    monkeypatch.setattr(pictures, "examine", lambda path: pytest.fail(f"opened {path}"))
    outcome = go(configuration)
    assert (outcome.kept, outcome.computed) == (4, 0)
    assert written() == before


def test_a_rerun_decodes_only_what_changed(monkeypatch):
    pairs(4)
    configuration = configured()
    go(configuration)
    old = table(configuration).samples
    draw("targets/2.png", seed=77)
    draw("targets/new.png", seed=301)
    draw("before/new.png", seed=302)
    Path("targets/0.png").unlink()
    Path("before/0.jpg").unlink()
    Path("targets/3.png").rename("targets/moved.png")
    Path("before/3.jpg").rename("before/moved.jpg")
    looked_at = []
    examine = pictures.examine
    monkeypatch.setattr(
        pictures, "examine", lambda path: looked_at.append(path.name) or examine(path)
    )
    outcome = go(configuration)
    # what only moved is known by its content
    assert sorted(looked_at) == ["2.png", "new.png", "new.png"]
    assert (outcome.wanted, outcome.kept, outcome.computed) == (4, 1, 3)
    counts = {kind: outcome.facts[kind] for kind in ("added", "changed", "removed", "renamed")}
    assert counts == {"added": 1, "changed": 1, "removed": 1, "renamed": 1}
    new = {sample.name: sample for sample in table(configuration).samples}
    assert new["1.png"] == old[1]
    assert new["moved.png"].target.latent_key == old[3].target.latent_key
    assert new["moved.png"].prefix_key == old[3].prefix_key


def test_a_new_caption_opens_no_picture(monkeypatch):
    pairs(2)
    for number in range(2):
        Path(f"targets/{number}.txt").write_text("before")
    configuration = configured(caption_strategy="textfile")
    go(configuration)
    monkeypatch.setattr(pictures, "examine", lambda path: pytest.fail(f"opened {path}"))
    Path("targets/1.txt").write_text("after this")
    assert go(configuration).computed == 1
    assert [sample.captions for sample in table(configuration).samples] == [
        ("before",),
        ("after this",),
    ]


def test_rejected_pictures_are_not_decoded_again_unless_asked(monkeypatch):
    pairs(2)
    damage("targets/1.png")
    configuration = configured()
    go(configuration, on_reject="skip")
    looked_at = []
    examine = pictures.examine
    monkeypatch.setattr(
        pictures, "examine", lambda path: looked_at.append(path.name) or examine(path)
    )
    draw("targets/2.png")
    draw("before/2.png")
    go(configuration)
    assert sorted(looked_at) == ["2.png", "2.png"]
    go(configuration, retry_rejected=True)
    assert looked_at[2:] == ["1.png"]


def test_renamed_folders_change_nothing():
    pairs(2)
    configuration = configured()
    go(configuration)
    before = table(configuration)
    Path("targets").rename("elsewhere")
    moved = configured(instance_data_dir="elsewhere")
    assert go(moved).computed == 0
    assert table(moved).samples == before.samples


def test_old_tables_stay_and_settings_have_tables_of_their_own():
    pairs(2)
    small, large = configured(resolution=64), configured(resolution=128)
    go(small)
    first = manifest_in(folder(small))
    go(large)
    assert folder(small) != folder(large)
    draw("targets/1.png", seed=9)
    go(small)
    assert manifest_in(folder(small))["pairs"] != first["pairs"]
    assert (folder(small) / first["pairs"]).exists()
    assert table(small).samples[0].target.size == (64, 64)
    assert table(large).samples[0].target.size == (160, 96)


def test_the_order_of_files_changes_nothing(monkeypatch):
    pairs(9)
    damage("before/7.jpg")
    draw("targets/3.jpg")
    Path("targets/sub").mkdir()
    configuration = configured(crop=True, crop_style="random", crop_aspect="random")
    go(configuration, on_reject="skip")
    straight = manifest_in(folder(configuration))
    listing = os.scandir

    @contextmanager
    def shuffled(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with listing(path) as entries:
            found = list(entries)
        random.Random(1).shuffle(found)
        yield found

    shutil.rmtree("cache")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", shuffled)
        go(configuration, on_reject="skip")
    assert manifest_in(folder(configuration)) == straight


def test_a_dry_run_writes_and_decodes_nothing(monkeypatch):
    pairs(3)
    Path("before/2.jpg").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "examine", lambda path: pytest.fail(f"opened {path}"))
        outcome = go(configured(), dry_run=True)
    assert not Path("cache").exists()
    go(configured(), on_reject="skip")
    draw("targets/2.png", seed=9)
    before = written(Path())  # not what it makes besides tables, either
    assert go(configured(), dry_run=True, on_reject="skip").facts["pictures_to_decode"] == 0
    draw("targets/1.png", seed=9)
    before |= written(Path("targets"))
    assert go(configured(), dry_run=True, paranoid=True).facts["pictures_to_decode"] == 4
    assert written(Path()) == before
    assert (outcome.wanted, outcome.failed, outcome.computed) == (3, 1, 0)
    assert outcome.facts["pictures_to_decode"] == 4
    assert outcome.facts["rejected"] == {"missing_reference": 1}


def test_what_was_looked_at_survives_an_interruption(monkeypatch):
    pairs(10)
    configuration = configured()
    examine, looked_at = pictures.examine, []

    def interrupted(path: Path) -> pictures.Facts:
        looked_at.append(path)
        if len(looked_at) == 15:
            raise KeyboardInterrupt
        return examine(path)

    monkeypatch.setattr(pictures, "available_cores", lambda: 1)
    monkeypatch.setattr(pictures, "BATCH_FILES", 4)
    monkeypatch.setattr(pictures, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(configuration)
    again: list[Path] = []
    monkeypatch.setattr(pictures, "examine", lambda path: again.append(path) or examine(path))
    go(configuration)
    assert len(again) == 20 - 12  # three whole batches of 4 were kept


def test_a_second_process_is_told_who_is_at_work():
    pairs(1)
    with writer_lock(Path("cache/pairs"), doing="qedit pair"), pytest.raises(Locked) as locked:
        go(configured())
    assert "qedit pair" in locked.value.what
    assert not list(Path("cache").rglob("*.parquet"))


def test_deleted_and_damaged_tables_are_made_again(monkeypatch):
    pairs(2)
    configuration = configured()
    go(configuration)
    before = table(configuration).samples
    path = folder(configuration) / manifest_in(folder(configuration))["pairs"]
    flip(path, path.stat().st_size // 3)
    with pytest.raises(Damaged, match="Delete it"):
        table(configuration)
    path.unlink()
    with pytest.raises(NotComplete, match="no pairs table"):
        table(configuration)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "examine", lambda path: pytest.fail(f"opened {path}"))
        go(configuration)
    assert table(configuration).samples == before
    memory = Path("cache/pairs/before") / MEMORY_FILE
    memory.write_bytes(b"torn")
    draw("targets/1.png", seed=50)
    assert go(configuration).computed == 1
