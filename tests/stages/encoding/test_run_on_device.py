"""The two caching stages as a user meets them: rejections, one decode, devices, batch sizes."""

from __future__ import annotations

import gc
import json
import re
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from samples import made_picture
from small_run import enter_copy, make_run, said, with_files

from qedit.cache.store import rejected_rows
from qedit.cache.store.rejected_rows import RejectedRow, RejectedRows
from qedit.cache.store.store import EMBEDS
from qedit.cache.store.store_set import StoreSet
from qedit.config.loading import Configuration, load
from qedit.stages.cache_embeds import encoding as embeds_encoding
from qedit.stages.cache_vae import encoding as vae_encoding
from qedit.stages.cache_vae.wanted_pictures import find_pictures
from qedit.stages.encoding import open_pictures
from qedit.stages.encoding.acceptance import Rejections
from qedit.stages.encoding.encoder import Made
from qedit.stages.encoding.recent_pictures import RecentPictures
from qedit.stages.encoding.reference_sets import ReferenceSet, find_wanted
from qedit.stages.encoding.spool import Spool, spool_key
from qedit.stages.encoding.work_split import Shard
from qedit.stages.encoding.write_rows import Keeping
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.samples.store_keys import Keys, PairsKeys
from qedit.stages.stores.run import Run
from qedit.stages.stores.run_stores import open_stores

PLAIN = ("--vae-batch-size", "1"), ("--text-batch-size", "1")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs with two references each, and two captions for the first."""
    folder = make_run(
        tmp_path_factory.mktemp("paired"), flavour="edit-v2", references=2, max_train_steps=1
    )
    (folder / "edited" / "p0.txt").write_text("make it number 0\nand a second caption\n")
    with chdir(folder):
        with_files("pair")
    return folder


@pytest.fixture
def here(paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_copy(paired, tmp_path / "here", monkeypatch)


@pytest.fixture(scope="module")
def one_by_one(paired: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Every row, each encoded by itself."""
    folder = tmp_path_factory.mktemp("one-by-one") / "run"
    shutil.copytree(paired, folder)
    with chdir(folder):
        with_files("cache-vae", *PLAIN[0], "--workers", "1")
        with_files("cache-embeds", *PLAIN[1], "--workers", "1")
        return rows_here()


def configuration() -> Configuration:
    return load(Path("config.json"), Path("data.json"))


def rows_here() -> dict[str, np.ndarray]:
    found = configuration()
    stores = open_stores(found, open_checkpoint(found.settings))
    return {key: store.read(key) for store in stores.all_stores() for key in sorted(store.keys())}


def assert_equal(rows: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        assert np.array_equal(row, others[key]), key


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded for an encoder."""
    counted: Counter[str] = Counter()
    really = open_pictures.open_upright

    def counting(source: Any, *, name: str = "") -> Image.Image:
        counted[name] += 1
        return really(source, name=name)

    monkeypatch.setattr(open_pictures, "open_upright", counting)
    return counted


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each encoder was loaded; the text encoder never while there is a VAE."""
    counted: Counter[str] = Counter()
    vaes: list[weakref.ref[Any]] = []
    really_vae, really_text = LatentEncoder.load, PromptEncoder.load

    def load_vae(*given: Any, **options: Any) -> LatentEncoder:
        encoder = really_vae(*given, **options)
        vaes.append(weakref.ref(encoder.vae))
        counted["vae"] += 1
        return encoder

    def load_text(*given: Any, **options: Any) -> PromptEncoder:
        gc.collect()
        assert [vae() for vae in vaes] == [None]
        counted["text"] += 1
        return really_text(*given, **options)

    monkeypatch.setattr(LatentEncoder, "load", load_vae)
    monkeypatch.setattr(PromptEncoder, "load", load_text)
    return counted


def test_a_run_decodes_every_picture_once_has_one_encoder_at_a_time_and_makes_the_same_rows(
    here: Path, decodes: Counter[str], loads: Counter[str], one_by_one: dict[str, np.ndarray]
) -> None:
    with_files("run", *PLAIN[0], *PLAIN[1])
    assert loads == {"vae": 1, "text": 1}
    assert len(decodes) == 12
    assert set(decodes.values()) == {1}
    assert_equal(rows_here(), one_by_one)
    assert list(Path("caches/spool").iterdir()) == []


def test_what_a_spool_does_not_hold_is_decoded_again(
    here: Path,
    decodes: Counter[str],
    one_by_one: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qedit.stages.encoding import spool

    monkeypatch.setattr(spool, "MOST_BYTES", 3 * 64 * 64 * 3)
    with_files("run", *PLAIN[0], *PLAIN[1])
    references = [count for name, count in decodes.items() if "reference" in name]
    assert sorted(references) == [1, 1, 1, 2, 2, 2, 2, 2]
    assert_equal(rows_here(), one_by_one)


def test_stages_of_their_own_decode_what_they_need(here: Path, decodes: Counter[str]) -> None:
    done = said(with_files("cache-vae", "--json"))
    with_files("cache-embeds")
    assert Counter(decodes.values()) == {1: 4, 2: 8}
    # where the time went is told, where any did
    assert done["bottleneck"] in done["bottleneck_seconds"]
    assert set(done["bottleneck_seconds"]) == {"decode", "encode", "write"}
    assert "bottleneck" not in said(with_files("cache-vae", "--json"))


def test_a_reference_that_sets_share_is_decoded_once(here: Path, decodes: Counter[str]) -> None:
    found = configuration()
    encoding = embeds_encoding.ReferenceEncoding(found, Run(found).checkpoint, device="cpu")
    one, *_ = find_wanted(Run(found)).work.values()
    swapped = replace(one.sample, references=one.sample.references[::-1])
    encoding.read(one)
    encoding.read(ReferenceSet(swapped, one.tails))
    assert list(decodes.values()) == [1, 1]


def test_recent_pictures_are_bounded_and_made_once() -> None:
    made: list[str] = []

    def making(name: str) -> Callable[[], Image.Image]:
        def make() -> Image.Image:
            made.append(name)
            time.sleep(0.01)
            return Image.new("RGB", (10, 10))

        return make

    recent = RecentPictures(most_bytes=2 * 300)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: recent.get("a", making("a")), range(8)))
    assert made == ["a"]
    for name in "bacab":  # "b" was the oldest when "c" came
        recent.get(name, making(name))
    assert "".join(made) == "abcb"
    with pytest.raises(ZeroDivisionError):
        recent.get("d", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    recent.get("d", making("d"))
    assert made[-1] == "d"


def test_ctrl_c_counts_no_pictures_that_were_left_for_the_next_stage(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really: Callable[..., Any] = LatentEncoder.encode
    batches = iter(range(12))

    def interrupted(self: Any, pixels: Any) -> Any:
        if next(batches) == 11:
            raise KeyboardInterrupt
        return really(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(LatentEncoder, "encode", interrupted)
        told = with_files("run", *PLAIN[0], expect=130).stderr
    (count,) = re.findall(r"(\d+) latents were made and are kept", told)
    assert int(count) == said(with_files("cache-vae", "--json"))["kept"]


@pytest.mark.full
def test_several_devices_share_the_work(here: Path, one_by_one: dict[str, np.ndarray]) -> None:
    done = said(with_files("cache-vae", "--devices", "cpu,cpu", *PLAIN[0], "--json"))
    assert (done["computed"], done["failed"]) == (12, 0)
    done = said(with_files("cache-embeds", "--devices", "cpu,cpu", *PLAIN[1], "--json"))
    assert done["computed"] == 4 + 9
    rows = rows_here()
    assert_equal(rows, one_by_one)
    assert list(Path("caches").rglob("claims/*.json")) == []


@pytest.mark.exhaustive
def test_a_workers_error_is_the_commands(here: Path) -> None:
    Path("edited/p1.png").write_bytes(b"another file")
    error = with_files("cache-vae", "--devices", "cpu,cpu", expect=4).stderr
    assert "Error: On cpu: edited/p1.png has changed since the pairs were made." in error


def test_an_unknown_device_among_several_is_wrong_use(here: Path) -> None:
    assert "lacks a name" in with_files("cache-vae", "--devices", "cpu,", expect=2).stderr
    assert "no device 'cuda:9'" in with_files("cache-vae", "--device", "cuda:9", expect=2).stderr


@pytest.mark.parametrize("size", ["0", "many", "1.5"])
def test_a_batch_size_is_a_number_or_auto(size: str, here: Path) -> None:
    error = with_files("cache-vae", "--vae-batch-size", size, expect=2).stderr
    assert "auto" in error


# -- rejected rows ---------------------------------------------------------------------


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
    assert "1 samples are rejected" in error
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
    order = make_plan(configuration()).feed.order
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
    Keeping({"latents": store_set}).keep("a", [Made(rejected={"latents": [row]}) for row in rows])
    assert swept.total() == 2


@pytest.mark.parametrize("size", [(1024, 1024), (1376, 768), (320, 448)])
def test_a_spool_gives_back_pictures_of_full_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """A 1 MP reference is shown whole to edit-v1's language model."""
    shown = Image.effect_noise(size, 64).convert("RGB")
    picture = made_picture("a.png", dataset="a", size=(64, 64), vl_size=size)
    spool = Spool(tmp_path / "spool", ["a"])
    row = spool.row_of(shown)
    assert row is not None
    store = spool.store_set.of("a")
    with store.adding():
        store.add([spool_key(picture)], [row])
    taken = Spool(tmp_path / "spool", ["a"]).take(picture)
    assert taken is not None
    assert taken.tobytes() == shown.tobytes()


def test_a_picture_that_went_from_a_spool_is_decoded_again(tmp_path: Path) -> None:
    picture = made_picture("a.png", dataset="a", size=(64, 64), vl_size=(64, 64))
    spool = Spool(tmp_path / "spool", ["a"])
    row = spool.row_of(Image.new("RGB", (64, 64)))
    assert row is not None
    store = spool.store_set.of("a")
    with store.adding():
        store.add([spool_key(picture)], [row])
    taker = Spool(tmp_path / "spool", ["a"])
    assert spool_key(picture) in taker.store_set
    for part in store.part_paths():
        shutil.rmtree(part)
    assert taker.take(picture) is None


def test_a_spool_takes_no_picture_that_no_part_holds_and_no_room_that_is_wanted(
    tmp_path: Path,
) -> None:
    assert Spool(tmp_path, ["a"]).row_of(Image.new("RGB", (4096, 4096 + 32))) is None
    assert Spool(tmp_path, ["a"]).row_of(Image.new("RGB", (1000, 1000))) is None
    free = shutil.disk_usage(tmp_path).free
    assert Spool(tmp_path, ["a"], spared_bytes=2 * free).row_of(Image.new("RGB", (64, 64))) is None


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
    found = configuration()
    run = Run(found)
    stores = run.stores
    shares: list[set[str]] = [set(), set()]
    rows: list[tuple[Path, str]] = []
    if stage == "cache-vae":
        for key, picture in find_pictures(run).latents.items():
            shares[int(key[:8], 16) % 2].add(key)
            rows.append((stores.latents.of(picture.dataset).path, key))
    else:  # a set of references is one piece of work, with all captions after it
        for key, one in find_wanted(run).work.items():
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
        rejections.look(store_set, PairsKeys(tmp_path), tails, prefixes=prefixes)
        assert rejections.places.keys() == own
        assert rejections.others == {f"{one}b"} - own


def test_what_another_process_tries_again_meanwhile_is_rejected_no_more(tmp_path: Path) -> None:
    store_set = StoreSet({"a": tmp_path}, {"rows": "made up"}, EMBEDS)
    place = RejectedRows(store_set.of("a").path)
    rejections = Rejections()
    for key in ("00", "01"):
        place.add(RejectedRow(key, "s", "a", "b.png", "nan", ""))
    keys = Keys(pa.array(["00", "01"]), np.array([0, 1]))
    rejections.look(store_set, PairsKeys(tmp_path), keys)
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


# -- one file in several geometries ------------------------------------------------------


def test_a_file_wanted_at_two_sizes_is_decoded_once(
    paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodes: Counter[str]
) -> None:
    """Two datasets of one folder, a target that is a reference as well."""
    enter_copy(paired, tmp_path / "two", monkeypatch)
    shutil.copy("edited/p0.png", "reference-a/p0.png")
    datasets = json.loads(Path("data.json").read_text())
    datasets.append(datasets[0] | {"id": "larger", "resolution": 96})
    Path("data.json").write_text(json.dumps(datasets))
    with_files("pair")
    done = said(with_files("cache-vae", "--vae-batch-size", "1", "--json"))
    assert done["computed"] == 4 + 4 + 8 - 1  # both sizes, references, p0 being one of them
    assert set(decodes.values()) == {1}
    assert len(decodes) == 4 + 8 - 1
    found = configuration()
    stores = open_stores(found, open_checkpoint(found.settings))
    for name in ("edited", "larger"):  # each in the store of its own dataset
        assert len(stores.latents.of(name)) == 4
    # what one of the two sizes lacks is made alone, and as before
    rows = rows_here()
    for part in stores.latents.of("larger").part_paths():
        shutil.rmtree(part)
    assert said(with_files("cache-vae", "--json", "--vae-batch-size", "1"))["computed"] == 4
    assert_equal(rows_here(), rows)
