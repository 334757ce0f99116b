"""Rows that come out as NaN are rejected, remembered, accepted and tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cached_rows import PLAIN, assert_equal, rows_here
from small_run import loaded, said, with_files

from qedit.cache.store import rejected_rows
from qedit.cache.store.rejected_rows import RejectedRow, RejectedRows
from qedit.cache.store.store import EMBEDS
from qedit.cache.store.store_set import StoreSet
from qedit.stages.cache_embeds import encoding as embeds_encoding
from qedit.stages.cache_vae import encoding as vae_encoding
from qedit.stages.cache_vae.wanted_pictures import find_pictures
from qedit.stages.encoding.acceptance import Rejections
from qedit.stages.encoding.encoder import EncodedItem
from qedit.stages.encoding.reference_sets import find_sets
from qedit.stages.encoding.work_split import Shard
from qedit.stages.encoding.write_rows import RowWriter
from qedit.stages.samples.store_keys import Keys, PairsKeys
from qedit.stages.stores.row_kinds import RowKind
from qedit.stages.stores.run import Run


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """p1's latents, and all embeds of p2, come out as NaN; counts what was encoded."""
    encoded: Counter[str] = Counter()
    latents, embeds = vae_encoding.OnDevice.encode, embeds_encoding.OnDevice.encode

    def vae(self: Any, items: Any, read: Any) -> Any:
        encoded["pictures"] += len(items)
        whole = self._encoder.encode
        bad = [one.first.path == "p1.png" and one.first.dataset == "edited" for one in items]
        self._encoder.encode = lambda pixels: whole(pixels).masked_fill(
            torch.tensor(bad)[:, None, None, None], float("nan")
        )
        try:
            return latents(self, items, read)
        finally:
            self._encoder.encode = whole

    def text(self: Any, items: Any, read: Any) -> Any:
        encoded["sets"] += len(items)
        whole = self._encoder.encode_all

        def spoiling(prompts: Any) -> Any:
            return [
                (prefix * float("inf"), tails) if one.sample.name == "p2.png" else (prefix, tails)
                for one, (prefix, tails) in zip(items, whole(prompts), strict=True)
            ]

        self._encoder.encode_all = spoiling
        try:
            return embeds(self, items, read)
        finally:
            self._encoder.encode_all = whole

    with monkeypatch.context() as patch:
        patch.setattr(vae_encoding.OnDevice, "encode", vae)
        patch.setattr(embeds_encoding.OnDevice, "encode", text)
        yield encoded


def test_nan_is_a_rejection_and_the_stage_goes_on(
    here: Path, spoilt: Counter[str], one_by_one: dict[str, np.ndarray]
) -> None:
    error = with_files("cache-vae", *PLAIN[0], expect=4).stderr
    assert "Rejected samples: 1. Rows that could not be made: 1." in error
    assert "edited: p1.png: nan_latents" in error
    assert "`qedit cache-vae --on-reject skip --config config.json --data data.json`" in error
    rows = rows_here()
    assert len(rows) == 11
    assert_equal(rows, {key: one_by_one[key] for key in rows})
    # a rerun says the same and encodes nothing
    spoilt.clear()
    assert "p1.png" in with_files("cache-vae", expect=4).stderr
    assert spoilt["pictures"] == 0
    refused = with_files("train", expect=4).stderr
    assert "rejected sample p1.png" in refused
    with_files("pair")  # of a copy the pictures are other files
    assert "cache-vae --on-reject skip" in with_files("status").stdout


def test_what_is_accepted_is_left_out_by_later_stages(here: Path, spoilt: Counter[str]) -> None:
    from qedit.stages.train.plan.training_plan import make_plan

    done = said(with_files("cache-vae", "--max-rejected", "1", "--json"))
    assert (done["wanted"], done["kept"], done["computed"], done["failed"]) == (12, 0, 11, 1)
    done = said(with_files("cache-embeds", "--on-reject", "skip", "--json"))
    # the prefix is given up, its tails are finite and kept
    assert (done["computed"], done["failed"]) == (3 + 9, 1)
    with_files("train")
    told = with_files("status").stdout
    assert "1 rejected" in told
    assert "missing" not in told
    with_files("inspect", "p0")
    order = make_plan(loaded()).feed.order
    shown = {sample.name for step in range(1, 9) for batch in order.step(step) for sample in batch}
    assert shown == {"p0.png", "p3.png"}
    spoilt.clear()
    # accepted once is accepted; nothing is encoded again
    with_files("cache-vae")
    with_files("cache-embeds")
    assert spoilt.total() == 0


def test_a_new_caption_of_what_was_given_up_asks_nobody_again(
    here: Path, spoilt: Counter[str]
) -> None:
    with_files("cache-embeds", "--on-reject", "skip")
    Path("edited/p2.txt").write_text("another caption\n")
    with_files("pair")
    spoilt.clear()
    dry = said(with_files("cache-embeds", "-n", "--json"))
    done = said(with_files("cache-embeds", "--json"))
    for told in (dry, done):
        assert (told["wanted"], told["kept"], told["failed"]) == (13, 11, 2)
    assert spoilt["sets"] == 0
    # mended, all of it is made
    assert said(with_files("cache-embeds", "-n", "--retry-rejected", "--json"))["missing"] == 2


def test_many_rejections_are_remembered_without_looking_through_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: Counter[Path] = Counter()
    monkeypatch.setattr(rejected_rows, "sweep", lambda folder: swept.update([folder]))
    rows = [RejectedRow(f"{at:032x}", "cache-vae", "a", "b.png", "nan", "") for at in range(9)]
    place = RejectedRows(tmp_path)
    for row in rows:
        place.add(row)
    place.accept([row.key for row in rows])
    assert all(read.accepted for row in rows if (read := place.read(row.key)))
    assert swept.total() == 1
    store_set = StoreSet({"a": tmp_path}, {"rows": "made up"}, EMBEDS)
    RowWriter({RowKind.LATENTS: store_set}).write(
        "a", [EncodedItem(rejected={RowKind.LATENTS: [row]}) for row in rows]
    )
    assert swept.total() == 2


def test_rejected_rows_are_tried_again_when_asked(here: Path, spoilt: Counter[str]) -> None:
    with_files("cache-vae", "--on-reject", "skip")
    spoilt.clear()
    done = said(with_files("cache-vae", "--retry-rejected", "--on-reject", "skip", "--json"))
    assert (done["computed"], done["failed"]) == (0, 1)
    assert spoilt["pictures"] == 1
    (remembered,) = Path("caches").rglob("rejected/*.json")
    remembered.write_text("{")
    assert str(remembered) in with_files("cache-vae", expect=5).stderr
    remembered.unlink()
    assert said(with_files("cache-vae", "--on-reject", "skip", "--json"))["failed"] == 1


def _reject_everything(stage: str) -> list[set[str]]:
    """Have every row of a stage rejected; the keys of each of two shares."""
    found = loaded()
    run = Run(found)
    stores = run.stores
    shares: list[set[str]] = [set(), set()]
    rows: list[tuple[Path, str]] = []
    if stage == "cache-vae":
        for key, picture in find_pictures(run).work[RowKind.LATENTS].items():
            shares[int(key[:8], 16) % 2].add(key)
            rows.append((stores.latents.of(picture.dataset).path, key))
    else:  # a set of references is one piece of work, with all captions after it
        for key, one in find_sets(run).sets.items():
            shares[int(key[:8], 16) % 2] |= {key, *one.tails}
            rows.append((stores.prefixes.of("edited").path, key))
            rows += ((stores.tails.of("edited").path, tail) for tail in one.tails)
    for place, key in rows:
        RejectedRows(place).add(RejectedRow(key, stage, "edited", "p.png", "nan", ""))
    return shares


def _rejected_here() -> set[str]:
    return {path.stem for path in Path("caches").rglob("rejected/*.json")}


@pytest.mark.parametrize("stage", ["cache-vae", "cache-embeds"])
def test_a_share_tries_again_what_was_rejected_of_it_and_no_more(here: Path, stage: str) -> None:
    first, second = _reject_everything(stage)
    assert first
    assert second
    again = ("--retry-rejected", "--json", "--shard")
    dry = said(with_files(stage, "-n", *again, "1/2"))
    assert (dry["missing"], dry["wanted"], dry["failed"]) == (len(first), len(first), 0)
    assert _rejected_here() == first | second
    for share, own, left in (("1/2", first, second), ("2/2", second, set[str]())):
        there = rows_here().keys()
        told = said(with_files(stage, *again, share))  # refused by nothing that another one mends
        assert (told["computed"], told["failed"], told["kept"]) == (len(own), 0, len(there))
        assert rows_here().keys() - there == own
        assert _rejected_here() == left


def test_tails_of_a_previewed_sample_are_in_the_share_of_its_own_prefix(tmp_path: Path) -> None:
    """Its whole references make another prefix than the row of the table has."""
    one, other = "00000000", "00000001"
    prefixes = Keys(pa.array([other]), np.array([7]))
    tails = Keys(pa.array([f"{one}a", f"{one}b"]), np.array([7, 7]))
    store_set = StoreSet({"a": tmp_path}, {"rows": "made up"}, EMBEDS)
    RejectedRows(store_set.of("a").path).add(RejectedRow(f"{one}b", "s", "a", "b.png", "nan", ""))
    for share, own in ((Shard(1, 2), set[str]()), (Shard(2, 2), {f"{one}b"})):
        rejections = Rejections(share)
        rejections.look(RowKind.TAILS, store_set, PairsKeys(tmp_path), tails, deciding=prefixes)
        assert rejections.places.keys() == own
        assert rejections.other_shards.keys() == {f"{one}b"} - own


def test_what_another_process_tries_again_meanwhile_is_rejected_no_more(tmp_path: Path) -> None:
    store_set = StoreSet({"a": tmp_path}, {"rows": "made up"}, EMBEDS)
    place = RejectedRows(store_set.of("a").path)
    rejections = Rejections()
    for key in ("00", "01"):
        place.add(RejectedRow(key, "s", "a", "b.png", "nan", ""))
    keys = Keys(pa.array(["00", "01"]), np.array([0, 1]))
    rejections.look(RowKind.TAILS, store_set, PairsKeys(tmp_path), keys)
    place.forget(["00"])
    rejections.settle(stage="s", on_reject="skip", max_rejected=0)
    assert place.all_keys() == {"01"}
    assert rejections.lines() == ["rejected: 1 nan"]
    place.forget(["01"])
    rejections.settle(stage="s", on_reject="fail", max_rejected=0)


def test_a_dry_run_says_what_is_missing_and_forgets_nothing(
    here: Path, spoilt: Counter[str]
) -> None:
    with_files("cache-vae", "--on-reject", "skip")
    done = said(with_files("cache-vae", "-n", "--json"))
    assert (done["kept"], done["failed"], done["missing"]) == (11, 1, 0)
    done = said(with_files("cache-vae", "-n", "--retry-rejected", "--json"))
    assert (done["kept"], done["failed"], done["missing"]) == (11, 0, 1)
    assert said(with_files("cache-vae", "-n", "--json"))["failed"] == 1
