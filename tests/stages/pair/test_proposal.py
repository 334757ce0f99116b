"""qedit init: two files for given folders, and why they say what they say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from picture_pairs import draw, pairs
from small_run import qedit, said

from qedit.config.loading import load
from qedit.stages.pair.proposal import propose


def started(*arguments: str, expect: int = 0) -> str:
    result = qedit("init", *arguments, expect=expect)
    return result.stdout if expect == 0 else result.stderr


def written():
    return load(Path("config.json"), None)


def test_one_reference_of_the_same_ratio() -> None:
    pairs(3)
    text = started("targets", "before")
    configuration = written()
    main, reference = configuration.datasets
    assert configuration.settings.model_flavour == "edit-v1"
    assert main.conditioning_data == ("before",)
    assert reference.conditioning_type == "reference_strict"
    assert reference.instance_data_dir == Path("before")
    for why in (
        "edit-v1: one folder",
        "3 pairs looked at agree",
        "no captions found",
        "resolution 64: ",
    ):
        assert why in text, text


def test_what_init_writes_goes_through_pair() -> None:
    pairs(3)
    for number in range(3):
        Path(f"targets/{number}.txt").write_text("turn it blue")
    assert "3 of 3 targets have a .txt" in started("targets", "before")
    outcome = said(qedit("pair", "--config", "config.json", "--json"))
    assert (outcome["wanted"], outcome["failed"]) == (3, 0)


def test_two_references_one_of_another_ratio() -> None:
    pairs(2)
    for number in range(2):
        draw(f"guests/{number}.webp", (50 + 40 * number, 50))
    text = started("targets", "before", "guests")
    assert written().settings.model_flavour == "edit-v2"
    assert [one.conditioning_type for one in written().datasets[1:]] == [
        "reference_strict",
        "reference_loose",
    ]
    assert "guests: reference_loose: 2 of 2 pairs" in text


@pytest.mark.parametrize(
    ("odd", "kind", "why"),
    [
        (2, "reference_strict", "18 of 20 pairs looked at agree in their ratio"),
        (3, "reference_loose", "3 of 20 pairs looked at differ in their ratio"),
    ],
)
def test_a_few_pairs_that_differ_are_named_and_decide_nothing(
    odd: int, kind: str, why: str
) -> None:
    for number in range(20):
        draw(f"targets/{number}.bmp", (40, 40))
        draw(f"before/{number}.bmp", (80 if number < odd else 40, 40))
    text = started("targets", "before")
    assert written().datasets[1].conditioning_type == kind
    assert why in text
    assert ("will reject the others: 0, 1" in text) == (kind == "reference_strict")


def test_sentences_in_the_names_are_captions() -> None:
    for folder in ("targets", "before"):
        draw(f"{folder}/make_the_cat_blue.bmp", (1100, 1000))
    started("targets", "before")
    main = written().datasets[0]
    assert main.caption_strategy == "filename"
    assert main.resolution == 1024


@pytest.mark.parametrize(("edge", "resolution"), [(600, 512), (300, 256), (150, 128), (8, 64)])
def test_the_resolution_fits_the_pictures(edge: int, resolution: int) -> None:
    for number in range(2):
        for folder in ("targets", "before"):
            draw(f"{folder}/{number}.bmp", (edge, edge))
    proposal = propose(Path("targets"), [Path("before")])
    assert f'"resolution": {resolution},' in proposal.data
    assert any("small for this model" in why for why in proposal.reasons) == (resolution < 512)


def test_names_of_folders_become_ids() -> None:
    pairs(1)
    shutil.copytree("before", "other/targets")
    shutil.copytree("before", "x/my pictures: b")
    started("targets", "other/targets", "x/my pictures: b")
    assert [one.id for one in written().datasets] == ["targets", "targets-2", "my-pictures-b"]


@pytest.mark.parametrize("name", ["config.json", "multidatabackend.json"])
def test_nothing_is_overwritten(name: str) -> None:
    pairs(1)
    Path(name).write_text("mine")
    assert f"{name} exist" in started("targets", "before", expect=2)
    assert Path(name).read_text() == "mine"
    assert len(list(Path().glob("*.json"))) == 1


def test_a_dry_run_writes_nothing_and_json_says_what_was_chosen() -> None:
    pairs(1)
    found = said(qedit("init", "targets", "before", "-n", "--json"))
    assert found["config"]["model_flavour"] == "edit-v1"
    assert not list(Path().glob("*.json"))


def test_folders_that_cannot_be_meant() -> None:
    pairs(1)
    Path("none").mkdir()
    draw("strangers/z.png")
    assert "no folder nowhere" in started("targets", "nowhere", expect=2)
    assert "no pictures" in started("targets", "none", expect=2)
    assert "z.png" in started("targets", "strangers", expect=2)
    assert "4 folders" in started("targets", "a", "b", "c", "d", expect=2)
    assert "Missing argument" in started("targets", expect=2)
