"""Ctrl-C while rows are made: finished rows are kept, and the rerun makes the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quiet import Quiet
from small_run import SIZES, draw, make_run, said, with_files

from qedit.cache.store.store import Store
from qedit.stages.cache_embeds.encoding import OnDevice
from qedit.stages.encoding import work_split
from qedit.stages.encoding.progress_messages import saying_what_is_kept
from qedit.stages.models.vae import LatentEncoder


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    with_files("pair")
    really: Callable[..., Any] = LatentEncoder.encode
    batches = 0

    def interrupted(self: Any, pixels: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return really(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(work_split, "ITEMS_IN_PART", 1)
        patch.setattr(LatentEncoder, "encode", interrupted)
        told = with_files("cache-vae", expect=130).stderr
    assert "2 latents were made and are kept" in told
    assert list((tmp_path / "caches").rglob("claims/*.json")) == []
    assert said(with_files("cache-vae", "--json"))["computed"] == 8 - 2


def test_who_made_nothing_does_not_say_that_it_is_kept() -> None:
    quiet = Quiet()
    with pytest.raises(KeyboardInterrupt), saying_what_is_kept(quiet, lambda: 0, "latents"):
        raise KeyboardInterrupt
    assert quiet.warned == ["no latents were made yet; the part in work is given up."]


def test_who_goes_on_makes_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    for number in range(4, 7):
        for folder in ("edited", "reference-a"):
            draw(tmp_path / folder / f"p{number}.png", SIZES[0], number)
        (tmp_path / "edited" / f"p{number}.txt").write_text(f"make it number {number}\n")
    monkeypatch.setattr(work_split, "ITEMS_IN_PART", 3)
    with_files("pair")
    whole = batches_of(monkeypatch)
    assert sorted(map(len, whole)) == [1, 1, 1, 2, 2]  # of jobs of three, three and one
    for ends_after in (1, 2, 3):  # parts: a job's prefixes are one, its tails another
        for folder in ("conditioning_image_embeds", "text_embeds"):
            shutil.rmtree(tmp_path / "caches" / folder)
        batches_of(monkeypatch, ends_after=ends_after)
        again = batches_of(monkeypatch)
        assert len(again) == 5 - 2 * (ends_after // 2)
        assert again <= whole


def batches_of(
    monkeypatch: pytest.MonkeyPatch, *, ends_after: int | None = None
) -> set[tuple[str, ...]]:
    """Which reference sets the encoder was shown together, until so many parts were written."""
    shown: set[tuple[str, ...]] = set()
    really_encode, really_add = OnDevice.encode, Store.add
    added = 0

    def encode(self: OnDevice, items: Any, read: Any) -> Any:
        shown.add(tuple(item.sample.prefix_key for item in items))
        return really_encode(self, items, read)

    def add(self: Store, keys: Any, rows: Any) -> None:
        nonlocal added
        if added == ends_after:
            raise KeyboardInterrupt
        added += 1
        really_add(self, keys, rows)

    with monkeypatch.context() as patch:
        patch.setattr(OnDevice, "encode", encode)
        patch.setattr(Store, "add", add)
        expect = 0 if ends_after is None else 130
        with_files("cache-embeds", "--text-batch-size", "2", expect=expect)
    return shown
