"""gc on a full disk makes room: what goes whole needs nothing written first."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from failing_writes import Trouble, full_disk
from small_run import cache_rows, said, with_files

from qedit.cache.files import atomic
from qedit.cache.files.claims import CLAIMS
from qedit.cache.files.lock import new_holder
from qedit.cache.files.owner import this_process

COMPACT = pytest.mark.parametrize("options", [(), ("--compact",)], ids=["gc", "compact"])


@contextmanager
def _full_until(gone: Path) -> Iterator[None]:
    """A disk without room until the last file of `gone` has gone."""

    class Full(Trouble):
        def open(self, path: Path) -> object:
            self.bytes = 0 if gone.exists() else 2**62
            return super().open(path)

    with Full(full_disk()):
        yield


@pytest.fixture
def crowded(copy: Path) -> Path:
    """Caches with a store that nobody asks for, rows of former captions, and a former table."""
    with_files("cache-vae", "--set", "vae_dtype=bf16")
    (copy / "edited" / "p2.txt").write_text("another caption")
    with_files("pair")
    with_files("cache-embeds")
    larger = ("--set", "data.edited.resolution=96")
    cache_rows(*larger)
    with_files("cache-vae")
    return copy


def _store_of_bf16(copy: Path) -> Path:
    lines = with_files("gc").stdout.splitlines()
    return copy / next(line.partition(":")[0] for line in lines if "all 4 rows" in line)


@COMPACT
def test_gc_removes_what_goes_whole_and_then_has_room(
    crowded: Path, options: tuple[str, ...]
) -> None:
    shown = said(with_files("gc", "--json", *options))
    with _full_until(_store_of_bf16(crowded)):
        done = said(with_files("gc", "--yes", "--json", *options))
    assert (done["bytes"], done["rows"]) == (shown["bytes"], shown["rows"])
    assert said(with_files("gc", "--json", *options))["bytes"] == 0
    for stage in ("pair", "cache-vae", "cache-embeds"):
        assert said(with_files(stage, "--json"))["computed"] == 0
    with_files("verify")


@COMPACT
def test_what_cannot_be_removed_without_room_stays_and_the_rest_has_gone(
    crowded: Path, options: tuple[str, ...]
) -> None:
    whole = _store_of_bf16(crowded)
    with Trouble(full_disk(), bytes=0):
        assert "no space left" in with_files("gc", "--yes", *options, expect=1).stderr
    assert not whole.exists()
    left = said(with_files("gc", "--json"))
    assert left["rows"] == 1  # the former caption's, in a part with rows that stay
    assert len(left["files"]) == 1  # a table that the record of the run may name
    for stage in ("cache-vae", "cache-embeds"):
        assert said(with_files(stage, "--json"))["computed"] == 0
    with_files("gc", "--yes", *options)
    assert said(with_files("gc", "--json", *options))["bytes"] == 0


def test_where_all_goes_whole_nothing_need_be_written(copy: Path) -> None:
    with_files("cache-vae", "--set", "vae_dtype=bf16")
    with Trouble(full_disk(), files=0):
        assert "removed" in with_files("gc", "--yes").stdout
    assert said(with_files("gc", "--json"))["bytes"] == 0
    assert said(with_files("cache-vae", "--json"))["computed"] == 0


def test_a_quota_is_a_full_disk(copy: Path) -> None:
    with_files("cache-vae", "--set", "vae_dtype=bf16")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        with_files("gc", "--yes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert said(with_files("gc", "--json"))["bytes"] == 0


def test_nobody_is_at_work_where_gc_can_write_no_lock(crowded: Path) -> None:
    store = _store_of_bf16(crowded)
    elsewhere = replace(new_holder("qedit cache-vae"), owner=replace(this_process(), host="other"))
    (store / CLAIMS).mkdir(exist_ok=True)
    (store / CLAIMS / "other~0.json").write_text(json.dumps({**asdict(elsewhere), "keys": ["0"]}))
    with Trouble(full_disk(), bytes=0):
        assert "on other" in with_files("gc", "--yes", expect=6).stderr
    assert store.exists()


def test_a_folder_that_cannot_be_renamed_for_want_of_room_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(path: Path, target: Path) -> Path:
        raise full_disk()

    (tmp_path / "part" / "latents").mkdir(parents=True)
    monkeypatch.setattr(Path, "rename", rename)
    atomic.remove(tmp_path / "part")
    assert list(tmp_path.iterdir()) == []
