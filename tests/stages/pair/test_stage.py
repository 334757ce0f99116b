"""pair, from folders to tables: what is kept, what is turned away, and what a rerun does."""

from __future__ import annotations

import os
import random
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paths import ROOT
from picture_pairs import (
    Silent,
    configured,
    damage,
    draw,
    folder,
    go,
    in_own_folder,
    pairs,
    rejected,
    table,
    written,
)
from PIL import Image

from qedit.cache.errors import Damaged, Locked, NotComplete, WrongUse
from qedit.cache.files.lock import writer_lock
from qedit.config.datasets import Dataset
from qedit.stages.models.flavours import FLAVOURS
from qedit.stages.pair import pictures
from qedit.stages.pair.checks import REASONS, WARNINGS
from qedit.stages.pair.picture_records import MEMORY_FILE
from qedit.stages.pair.scan import scan
from qedit.stages.pair.stage import run
from qedit.stages.samples.table import manifest_in, pairs_recipe, read_rejections

_ = in_own_folder


# --- what a table holds


def test_a_table_of_pairs():
    pairs(2)
    draw("targets/sub/deep_one.png", (60, 40), seed=5)
    draw("before/sub/deep_one.webp", (120, 80), seed=6, lossless=True)
    configuration = configured(settings={"model_flavour": "edit-v3"}, flavour="edit-v3")
    outcome = go(configuration)
    assert (outcome.wanted, outcome.kept, outcome.computed, outcome.failed) == (3, 0, 3, 0)
    samples = table(configuration).samples
    assert [sample.name for sample in samples] == ["0.png", "1.png", "sub/deep_one.png"]
    deep = samples[2]
    assert deep.dataset == deep.target.dataset == "targets"
    assert deep.captions == ("deep one",)
    assert (deep.target.width, deep.target.height) == (60, 40)
    assert deep.target.whole
    assert deep.target.size == (64, 64)  # 78 x 52 to multiples of 32
    assert deep.target.vl_size is None
    (reference,) = deep.references
    assert reference.path == "sub/deep_one.webp"
    assert reference.dataset == "before"
    assert reference.size == (1248, 832)
    assert reference.vl_size == (480, 320)


def test_digests_are_those_of_the_files():
    from qedit.cache.files.fingerprint import digest_file

    pairs(1)
    configuration = configured()
    go(configuration)
    (sample,) = table(configuration).samples
    assert sample.target.digest == digest_file(Path("targets/0.png"))
    assert sample.references[0].digest == digest_file(Path("before/0.jpg"))


def test_edit_v1_shows_both_encoders_one_size():
    pairs(1, size=(192, 108))
    configuration = configured(flavour="edit-v1")
    go(configuration)
    (reference,) = table(configuration).samples[0].references
    assert reference.size == reference.vl_size == (1376, 768)


def test_three_references_keep_their_order():
    for name in ("targets", "c", "a", "b"):
        draw(f"{name}/x.png", seed=ord(name[0]))
    configuration = configured(references=("c", "a", "b"))
    go(configuration)
    (sample,) = table(configuration).samples
    assert [reference.dataset for reference in sample.references] == ["c", "a", "b"]


def test_exif_is_applied_before_anything_is_measured():
    exif = Image.Exif()
    exif[0x0112] = 6
    draw("targets/a.jpg", (48, 32), exif=exif)
    draw("before/a.png", (32, 48))
    configuration = configured()
    go(configuration)
    found = table(configuration)
    assert (found.samples[0].target.width, found.samples[0].target.height) == (32, 48)
    assert found.warnings["exif_rotated"] == 1


def test_strict_references_share_the_targets_crop_and_loose_ones_are_whole():
    draw("targets/a.png", (60, 40))
    draw("before/a.png", (120, 80))
    strict = configured(crop=True)
    go(strict)
    (sample,) = table(strict).samples
    assert sample.target.box == (10.0, 0.0, 50.0, 40.0)
    assert sample.references[0].box == (20.0, 0.0, 100.0, 80.0)
    assert sample.references[0].size == (1024, 1024)
    loose = configured(crop=True, strict=False)
    go(loose)
    (sample,) = table(loose).samples
    assert sample.target.box == (10.0, 0.0, 50.0, 40.0)
    assert sample.references[0].whole
    assert sample.references[0].size == (1248, 832)


def test_the_same_file_twice_has_one_latent_row_when_the_sizes_agree():
    draw("targets/a.png", (64, 64))
    shutil.copytree("targets", "before")
    configuration = configured(resolution=1024, crop=True, crop_style="random")
    go(configuration)
    found = table(configuration)
    sample = found.samples[0]
    assert sample.target.latent_key == sample.references[0].latent_key
    assert found.warnings["target_equals_reference"] == 1


def test_match_target_res_gives_references_the_targets_area():
    pairs(1, size=(48, 48))
    kwargs = {"model_kwargs": {"match_target_res": True}}
    configuration = configured(settings=kwargs, resolution=512)
    go(configuration)
    (reference,) = table(configuration).samples[0].references
    assert reference.size == (512, 512)
    assert reference.vl_size == (384, 384)
    single = configured(settings=kwargs, resolution=512, flavour="edit-v1")
    go(single)
    assert table(single).samples[0].references[0].size == (1024, 1024)


def test_several_datasets_name_their_samples_apart():
    pairs(2)
    draw("other/0.png", seed=40)
    draw("other/new.png", seed=41)
    draw("before/new.png", seed=42)
    draw("held/1.png", seed=43)
    more = (
        Dataset(id="other", instance_data_dir="other", conditioning_data=["before"], resolution=64),
        Dataset(
            id="held", instance_data_dir="held", conditioning_data=["before"], dataset_type="eval",
            resolution=64, crop=True,
        ),
    )  # fmt: skip
    configuration = configured(more=more)
    outcome = go(configuration)
    assert outcome.wanted == outcome.computed == 5
    names = [[sample.name for sample in table(configuration, main).samples] for main in (0, 2, 3)]
    assert names == [["targets:0.png", "1.png"], ["other:0.png", "new.png"], ["held:1.png"]]
    (held_out,) = table(configuration, 3).samples
    assert held_out.target.whole  # what inference shows is never cropped


def test_random_sampling_pairs_a_target_with_one_reference_at_a_time():
    for name in ("targets", "a", "b"):
        draw(f"{name}/x.png", seed=ord(name[0]))
    configuration = configured(
        flavour="edit-v1", references=("a", "b"),
        settings={"conditioning_multidataset_sampling": "random"},
    )  # fmt: skip
    go(configuration)
    samples = table(configuration).samples
    assert [sample.name for sample in samples] == ["x.png#a", "x.png#b"]
    assert [[one.dataset for one in sample.references] for sample in samples] == [["a"], ["b"]]
    assert [sample.group for sample in samples] == ["x.png", "x.png"]
    assert samples[0].prefix_key != samples[1].prefix_key


def test_groups_are_of_one_target_and_a_subset_counts_targets():
    pairs(6)
    for number in range(4, 6):  # before holds all, after only some
        draw(f"after/{number}.png", seed=200 + number)
    random = {"conditioning_multidataset_sampling": "random"}
    several = {"references": ("before", "after"), "settings": random}
    configuration = configured(**several)
    go(configuration, on_reject="skip")
    groups = [(one.group, one.references[0].dataset) for one in table(configuration).samples]
    assert sorted(groups) == sorted(
        [(f"{number}.png", "before") for number in range(6)]
        + [("4.png", "after"), ("5.png", "after")]
    )
    few = configured(**several, max_num_samples=5)
    go(few, on_reject="skip")
    assert len({one.group for one in table(few).samples}) == 5
    alone = configured(settings=random)  # one reference: nothing takes turns
    go(alone)
    assert {one.group for one in table(alone).samples} == {""}


def test_a_subset_is_the_same_every_time_and_grows():
    pairs(12)
    some = {}
    for most in (4, 8):
        configuration = configured(max_num_samples=most)
        assert go(configuration).wanted == most
        some[most] = {sample.name for sample in table(configuration).samples}
    assert len(some[4]) == 4
    assert some[4] < some[8]
    assert some[4] != {"0.png", "1.png", "10.png", "11.png"}


# --- bad input


def test_every_bad_file_has_its_reason():
    pairs(8)
    damage("targets/1.png")
    damage("before/2.jpg", b"")
    damage("before/3.jpg", b"no picture")
    Path("before/4.jpg").unlink()
    draw("before/extra.png")
    draw("targets/5.jpg")
    giant = bytearray(Path("targets/6.png").read_bytes())
    giant[16:24] = (60000).to_bytes(4, "big") * 2
    giant[29:33] = zlib.crc32(giant[12:29]).to_bytes(4, "big")
    damage("targets/6.png", bytes(giant))
    assert rejected(configured()) == {
        "1.png": "unreadable",
        "2.jpg": "zero_bytes",
        "3.jpg": "not_a_picture",
        "4.png": "missing_reference",
        "extra.png": "extra_reference",
        "5.jpg": "ambiguous",
        "6.png": "too_many_pixels",
    }
    assert [sample.name for sample in table(configured()).samples] == ["0.png", "7.png"]
    rows = read_rejections(folder(configured()))
    (two,) = [row.detail for row in rows if row.reason == "ambiguous"]
    assert "5.png" in two
    assert "5.jpg" in two


def test_two_candidates_for_a_reference():
    pairs(2)
    draw("before/1.png")
    assert rejected(configured()) == {"1.jpg": "ambiguous"}


def test_ratios_sizes_and_strictness():
    pairs(1)
    draw("targets/strip.png", (9, 90))
    draw("before/strip.png", (9, 90))
    draw("targets/tiny.png", (12, 8))
    draw("before/tiny.png", (48, 32))
    draw("targets/other.png", (48, 32))
    draw("before/other.png", (48, 33))
    draw("targets/near.png", (100, 100))
    draw("before/near.png", (102, 100))
    bounds = {"minimum_image_size": 20}
    reasons = rejected(configured(reference=bounds, **bounds))
    assert reasons == {
        "strip.png": "ratio_out_of_bounds",
        "tiny.png": "too_small",
        "other.png": "ratios_differ",
    }
    assert rejected(configured(strict=False)) == {"strip.png": "ratio_out_of_bounds"}
    wide = {"strict_ratio_tolerance": 0.05, "minimum_aspect_ratio": 0.01}
    assert rejected(configured(reference=wide, minimum_aspect_ratio=0.01)) == {}


def test_captions_that_are_missing():
    pairs(4)
    Path("targets/0.txt").write_bytes(b"make it red\n\nredder \n")
    Path("targets/1.txt").write_bytes(b" \n")
    Path("targets/2.txt").write_bytes(b"\xff\xfe")
    configuration = configured(caption_strategy="textfile")
    assert rejected(configuration) == {
        "1.png": "empty_caption",
        "2.png": "caption_not_utf8",
        "3.png": "missing_caption",
    }
    (sample,) = table(configuration).samples
    assert sample.captions == ("make it red", "redder")


def test_odd_names_and_things_that_are_no_files():
    pairs(1)
    for name in ("with space", "quote'\"", "new\nline", "🐈", "per%cent"):
        draw(f"targets/{name}.png")
        draw(f"before/{name}.png")
    Path("targets/a.png").mkdir()
    draw("targets/a.png/inside.png")
    draw("before/a.png/inside.jpg")
    for raw in (b"targets/\xff.png", b"before/\xff.png"):
        shutil.copy("targets/0.png", raw)
    os.mkfifo("targets/pipe.png")
    os.symlink("nowhere.png", "targets/gone.png")
    os.symlink("loop.png", "targets/loop.png")
    draw("targets/.hidden.png")
    draw("targets/.hidden/a.png")
    Path("targets/notes.md").write_text("not a picture")
    configuration = configured()
    assert rejected(configuration) == {
        "\\xff.png": "name_not_utf8",
        "pipe.png": "not_a_picture",
        "gone.png": "broken_link",
        "loop.png": "not_readable_now",
    }
    names = {sample.name for sample in table(configuration).samples}
    assert names == {
        "0.png", "with space.png", "quote'\".png", "new\nline.png", "🐈.png", "per%cent.png",
        "a.png/inside.png",
    }  # fmt: skip


def test_composed_and_decomposed_names_match():
    draw("targets/caf\u00e9.png")
    draw("before/cafe\u0301.png")
    configuration = configured()
    assert go(configuration).computed == 1


def test_unreadable_files_are_asked_again(monkeypatch):
    """File permissions do not stop root: the system call is made to fail instead."""
    pairs(2)
    opened = Path.open

    def refuse(path: Path, *args: object, **options: object):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    configuration = configured()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert rejected(configuration) == {"1.png": "permission_denied"}
    assert rejected(configuration) == {}


def test_linked_folders_are_followed_once():
    pairs(1)
    draw("elsewhere/x.png", seed=7)
    draw("elsewhere_before/x.png", seed=8)
    os.symlink("../elsewhere", "targets/linked")
    os.symlink("../elsewhere_before", "before/linked")
    os.symlink("..", "elsewhere/up")
    os.symlink("../elsewhere", "targets/linked_again")
    progress = Silent()
    run(configured(), progress, on_reject="skip")
    found = scan(Path("targets"))
    paths = [file.path for file in found.pictures]
    assert "linked/x.png" in paths
    assert not any(path.startswith("linked_again") for path in paths)
    assert any("linked_again leads to a folder already read" in line for line in progress.lines)


def test_every_code_is_explained_and_used():
    stages = ROOT / "stages"
    sources = [*(stages / "pair").glob("*.py"), *(stages / "pictures").glob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    for code in (*REASONS, *WARNINGS):
        assert text.count(f'"{code}"') > 1, code
    raised = set(re.findall(r'(?:Unreadable|NoCaption)\(\s*"([a-z_]+)"', text))
    raised |= set(re.findall(r'reason = "([a-z_]+)"', text))
    assert len(raised) > 8
    assert raised <= set(REASONS)


def _rename_all(folder: str, new: Callable[[Path], Path]) -> None:
    for path in list(Path(folder).iterdir()):
        path.rename(new(path))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: shutil.rmtree("before"), "before: the folder before does not exist"),
        (lambda: [path.unlink() for path in Path("targets").iterdir()], "targets is empty"),
        (lambda: _rename_all("targets", lambda path: path.with_suffix(".doc")), "no pictures"),
        (lambda: _rename_all("before", lambda path: path.with_stem(f"z{path.stem}")), "z0.jpg, z1"),
    ],
)
def test_folders_that_cannot_be_meant(spoil, message):
    pairs(3)
    spoil()
    with pytest.raises(WrongUse) as refused:
        go(configured())
    assert message in str(refused.value)
    assert not Path("cache").exists()


def test_all_missing_folders_are_named_at_once():
    with pytest.raises(WrongUse) as refused:
        go(configured())
    assert "folder targets does not" in refused.value.what
    assert "folder before does not" in refused.value.what
    assert str(Path.cwd()) in refused.value.do


# --- what is done about rejected samples


def test_rejections_stop_the_run_until_they_are_accepted():
    pairs(3)
    damage("targets/1.png")
    configuration = configured()
    with pytest.raises(NotComplete) as stopped:
        go(configuration)
    text = str(stopped.value)
    assert stopped.value.exit_code == 4
    for part in ("1 of 3 samples", "1 unreadable", "1.png", "--on-reject skip", "--max-rejected 1"):
        assert part in text
    with pytest.raises(NotComplete, match="nobody has accepted"):
        table(configuration)
    outcome = go(configuration, max_rejected=1)
    assert "rejected: 1 unreadable (a broken or truncated picture)" in outcome.lines
    assert any(line.startswith("    targets: 1.png: ") for line in outcome.lines)
    assert (outcome.wanted, outcome.kept, outcome.failed) == (3, 2, 1)
    assert outcome.facts["rejected"] == {"unreadable": 1}
    assert len(table(configuration).samples) == 2
    assert table(configuration).rejected == {"unreadable": 1}
    assert go(configuration).failed == 1  # still accepted
    damage("before/2.jpg", b"")
    with pytest.raises(NotComplete):  # but not a further one
        go(configuration)
    go(configuration, on_reject="skip")
    draw("targets/1.png", seed=1)
    assert go(configuration).failed == 1  # fewer are accepted as well


def test_nothing_left_is_never_accepted():
    pairs(1)
    damage("targets/0.png")
    with pytest.raises(NotComplete, match="Nothing is left"):
        go(configured(), on_reject="skip")


def test_a_sample_with_two_faults_counts_once_and_names_both():
    pairs(2)
    damage("targets/1.png")
    damage("before/1.jpg", b"")
    configuration = configured()
    assert go(configuration, on_reject="skip").failed == 1
    assert len(read_rejections(folder(configuration))) == 2


def test_without_a_table_the_next_command_is_named():
    pairs(1)
    with pytest.raises(NotComplete) as missing:
        table(configured())
    assert missing.value.do == "Run `qedit pair`."


# --- reruns


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
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
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


# --- recipes


def test_recipes_hold_what_decides_and_nothing_else():
    def recipe(**fields: object) -> dict:
        configuration = configured(**fields)
        flavour = FLAVOURS[configuration.settings.model_flavour]
        return pairs_recipe(configuration, configuration.datasets[0], flavour)

    plain = recipe()
    for same in (
        {"instance_data_dir": "elsewhere"},
        {"repeats": 3},
        {"probability": 0.5},
        {"crop_style": "random"},
        {"settings": {"seed": 7}},
        {"flavour": "edit-v3"},
        {"settings": {"learning_rate": 1.0}},
        {"caption_shuffle": {"seed": 5}},
    ):
        assert recipe(**same) == plain, same
    for other in (
        {"resolution": 65},
        {"crop": True},
        {"flavour": "edit-v1"},
        {"strict": False},
        {"missing_caption": "empty"},
        {"caption_strategy": "textfile"},
        {"maximum_aspect_ratio": 4},
        {"max_num_samples": 1},
        {"reference": {"strict_ratio_tolerance": 0.1}},
        {"reference": {"minimum_image_size": 10}},
        {"settings": {"model_kwargs": {"match_target_res": True}}},
    ):
        assert recipe(**other) != plain, other
    drawn = {"crop": True, "crop_style": "random"}
    assert recipe(**drawn, settings={"seed": 7}) != recipe(**drawn)
