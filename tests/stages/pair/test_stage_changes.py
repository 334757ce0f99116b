"""pair on data that changes: what is opened again, what is found broken, what a crash leaves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from crashing import changes_of, deaths_in, kill
from picture_pairs import (
    Silent,
    configured,
    damage,
    draw,
    folder,
    go,
    pairs,
    rejected,
    table,
    written,
)

from qedit.cache.errors import NotComplete
from qedit.config.configuration import Configuration
from qedit.pipeline.upkeep.collect import refuse_without_pairs
from qedit.stages.models.checkpoint.checkpoint import flavour_of
from qedit.stages.pair import picture_records, pictures
from qedit.stages.pair.scan import Files
from qedit.stages.pair.stage import run
from qedit.stages.samples.store_keys import PairsKeys, pairs_keys
from qedit.stages.samples.table import manifest_in
from qedit.stages.stores.pins import RUNS
from qedit.stages.stores.run import Run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that were decoded, in order."""
    names: list[str] = []
    examine = pictures.examine

    def noted(path: Path) -> pictures.Facts:
        names.append(str(path))
        return examine(path)

    monkeypatch.setattr(pictures, "examine", noted)
    return names


def test_touched_moved_and_renamed_files_are_known_by_their_content(opened: list[str]) -> None:
    pairs(3)
    configuration = configured()
    go(configuration)
    before = table(configuration).samples
    opened.clear()
    os.utime("targets/0.png", ns=(5, 5))
    Path("targets/sub").mkdir()
    Path("before/sub").mkdir()
    Path("targets/1.png").rename("targets/sub/one.png")
    Path("before/1.jpg").rename("before/sub/one.jpg")
    outcome = go(configuration)
    assert opened == []
    assert (outcome.facts["renamed"], outcome.facts["added"], outcome.facts["removed"]) == (1, 0, 0)
    after = {sample.name: sample for sample in table(configuration).samples}
    assert after["0.png"] == before[0]
    assert after["sub/one.png"].prefix_key == before[1].prefix_key


def test_many_are_recalled_block_by_block(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_records, "_BLOCK_ROWS", 2)
    pairs(7)
    damage("targets/4.png")
    configuration = configured()
    go(configuration, on_reject="skip")
    kept = table(configuration).samples
    opened.clear()
    Path("targets/0.png").unlink()
    Path("before/0.jpg").unlink()
    for where, name, seed in (("targets", "1a.png", 50), ("before", "1a.jpg", 51)):
        draw(f"{where}/{name}", seed=seed)
    os.utime("targets/6.png", ns=(2**62, 2**62))
    go(configuration, on_reject="skip")
    assert sorted(opened) == ["before/1a.jpg", "targets/1a.png"]
    found = {sample.name: sample for sample in table(configuration).samples}
    assert sorted(found) == ["1.png", "1a.png", "2.png", "3.png", "5.png", "6.png"]
    assert all(found[one.name] == one for one in kept if one.name != "0.png")


def test_files_that_swap_names_swap_their_facts(opened: list[str]) -> None:
    draw("targets/a.bmp", (40, 40), seed=1)
    draw("targets/b.bmp", (40, 40), seed=2)
    for name in "ab":
        draw(f"before/{name}.bmp", (40, 40), seed=9)
    configuration = configured()
    go(configuration)
    one, two = table(configuration).samples
    opened.clear()
    Path("targets/a.bmp").rename("x")
    Path("targets/b.bmp").rename("targets/a.bmp")
    Path("x").rename("targets/b.bmp")
    for name, time_ns in (("a", 11), ("b", 22)):
        os.utime(f"targets/{name}.bmp", ns=(time_ns, time_ns))
    outcome = go(configuration)
    assert opened == []
    assert outcome.facts["changed"] == 2
    swapped = table(configuration).samples
    assert [one.target.digest, two.target.digest] == [s.target.digest for s in reversed(swapped)]


def change_a_bmp() -> None:
    """Other pixels of the same size and time, as a copy that keeps the time brings them."""
    facts = os.stat("targets/a.bmp")
    draw("targets/a.bmp", seed=1234)
    os.utime("targets/a.bmp", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert os.stat("targets/a.bmp").st_size == facts.st_size


def test_a_change_that_keeps_size_and_time_is_seen(opened: list[str]) -> None:
    for name in ("targets/a.bmp", "before/a.bmp"):
        draw(name, seed=len(name))
    configuration = configured()
    go(configuration)
    opened.clear()
    change_a_bmp()
    assert go(configuration).facts["changed"] == 1
    assert opened == ["targets/a.bmp"]


def test_only_paranoid_sees_a_change_that_the_system_does_not_tell(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Files.add

    def without_ctime(files: Files, path: str, facts: os.stat_result, link: os.stat_result) -> None:
        add(files, path, facts, link)
        files.ctimes_ns[-1] = 0

    monkeypatch.setattr(Files, "add", without_ctime)
    for name in ("targets/a.bmp", "before/a.bmp"):
        draw(name, seed=len(name))
    configuration = configured()
    go(configuration)
    old = table(configuration).samples
    change_a_bmp()
    opened.clear()
    assert go(configuration).computed == 0
    assert table(configuration).samples == old
    assert go(configuration, paranoid=True).facts["changed"] == 1
    assert opened == ["targets/a.bmp"]  # what is as it was is digested and not decoded
    assert table(configuration).samples != old


def test_paranoid_writes_nothing_when_nothing_changed(opened: list[str]) -> None:
    pairs(2)
    configuration = configured()
    go(configuration)
    before = written()
    opened.clear()
    outcome = go(configuration, paranoid=True)
    assert (outcome.computed, opened) == (0, [])
    assert written() == before


def test_pairs_of_other_folders_of_one_id_are_not_trained_on() -> None:
    """Two runs that share a cache folder may both call their targets "main"."""
    pairs(2)
    shutil.copytree("targets", "others")
    draw("others/1.png", seed=77)
    mine, others = configured(), configured(instance_data_dir="others")
    go(mine)
    samples = table(mine).samples
    go(others)
    for read in (table, keys_of_table, wants_rows_kept):
        with pytest.raises(NotComplete, match=r"in others, not of .* targets"):
            read(mine)
    go(mine)
    assert table(mine).samples == samples
    keys_of_table(mine)
    shutil.rmtree("targets")  # as on a machine that only trains
    table(others)
    keys_of_table(others)


def test_a_folder_that_was_renamed_or_is_linked_is_no_other() -> None:
    pairs(2)
    go(configured())
    os.symlink("targets", "linked")
    table(configured(instance_data_dir="linked"))
    Path("targets").rename("renamed")
    table(configured(instance_data_dir="renamed"))
    assert go(configured(instance_data_dir="renamed")).computed == 0
    shutil.copytree("renamed", "targets")
    table(configured(instance_data_dir="renamed"))


def wants_rows_kept(configuration: Configuration) -> None:
    """As `gc` begins."""
    refuse_without_pairs(Run(configuration))


def keys_of_table(configuration: Configuration) -> PairsKeys:
    (main,) = configuration.main_datasets()
    return pairs_keys(configuration, main, flavour_of(configuration.settings))


def test_quick_reads_headers_and_the_next_run_decodes(opened: list[str]) -> None:
    pairs(3)
    damage("targets/1.png")  # its header is sound
    damage("before/2.jpg", b"no picture")
    configuration = configured()
    outcome = go(configuration, quick=True, on_reject="skip")
    assert opened == []
    assert outcome.facts["rejected"] == {"not_a_picture": 1}
    assert outcome.facts["warnings"]["not_decoded"] == 2
    assert [sample.name for sample in table(configuration).samples] == ["0.png", "1.png"]
    before = written()
    assert go(configuration, quick=True).computed == 0
    assert written() == before
    with pytest.raises(NotComplete, match="1 unreadable"):
        go(configuration)
    assert len(opened) == 5  # all but what is no picture
    assert "not_decoded" not in manifest_in(folder(configuration))["warnings"]
    opened.clear()
    assert go(configuration, quick=True, on_reject="skip").facts["warnings"].keys() == {"upscaled"}
    assert opened == []


def test_quick_and_full_see_the_same_sizes() -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("a.jpg", "b.png", "c.webp", "d.tif"):
        draw(f"targets/{name}", (60, 40), exif=exif)
        draw(f"before/{name}", (40, 60))
    configuration = configured()
    go(configuration, quick=True)
    quick = table(configuration).samples
    assert go(configuration).computed == 0
    assert table(configuration).samples == quick
    assert {sample.target.size for sample in quick} == {(64, 64)}
    assert {(sample.target.width, sample.target.height) for sample in quick} == {(40, 60)}


@pytest.mark.parametrize("paranoid", [False, True])
def test_retry_rejected_looks_again(opened: list[str], paranoid: bool) -> None:
    pairs(2)
    damage("targets/1.png")
    rejected(configured())
    opened.clear()
    rejected(configured(), retry_rejected=True, paranoid=paranoid)
    assert opened == ["targets/1.png"]


def test_old_tables_are_read_by_who_began_with_them() -> None:
    pairs(2)
    configuration = configured()
    go(configuration)
    manifest = manifest_in(folder(configuration))
    Path("targets/0.png").unlink()
    rejected(configuration)
    assert (folder(configuration) / manifest["pairs"]).is_file()
    assert manifest_in(folder(configuration))["pairs"] != manifest["pairs"]


def pair_in(workplace: Path) -> None:
    """The work that is killed: the pictures lie beside the folder that it changes."""
    os.chdir(workplace.parent)
    run(configured(settings={"cache_dir": str(workplace)}), Silent(), on_reject="skip")


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_at_any_change_the_rerun_ends_the_same(tmp_path: Path, every: int) -> None:
    pairs(2)
    damage("before/1.jpg")
    whole = tmp_path / "whole"
    changes = changes_of(pair_in, whole)
    assert len(changes) > 8
    expected = _tables(whole)
    deaths = list(deaths_in(changes))[::every]
    for number, death in enumerate(deaths):
        place = tmp_path / f"killed-{number}"
        kill(pair_in, place, death=death)
        run(configured(settings={"cache_dir": str(place)}), Silent(), on_reject="skip")
        assert _tables(place) == expected, death
        shutil.rmtree(place)


def _tables(root: Path) -> dict[str, bytes]:
    """All files but a dead one's lock, by their place, as bytes: also no leftovers.

    Notes say where they lie, which is another place each time: that they are there counts.
    """
    files = (path for path in root.rglob("*") if path.is_file() and "writer" not in path.name)
    return {
        str(path.relative_to(root)): b"" if path.parent.name == RUNS else path.read_bytes()
        for path in files
    }
