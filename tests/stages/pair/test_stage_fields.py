"""Every field that decides a table has its effect through the whole of `pair`."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
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
)

from qedit.cache.errors import NotComplete
from qedit.stages.pair.stage import run

WHOLE = (0.0, 0.0, 120.0, 80.0)


@pytest.mark.parametrize(
    ("fields", "box", "size"),
    [
        ({}, WHOLE, (320, 224)),
        ({"resolution": 512}, WHOLE, (640, 416)),
        ({"resolution": 0.25, "resolution_type": "area"}, WHOLE, (640, 416)),
        ({"resolution_type": "pixel"}, WHOLE, (384, 256)),
        ({"crop": True}, (20.0, 0.0, 100.0, 80.0), (256, 256)),
        ({"crop": True, "crop_style": "corner"}, (0.0, 0.0, 80.0, 80.0), (256, 256)),
        ({"crop": True, "crop_aspect": "preserve"}, WHOLE, (320, 224)),
        (
            {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [0.5, 2.0]},
            (0.0, 10.0, 120.0, 70.0),
            (352, 192),
        ),
        (
            {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.5]},
            (40.0, 0.0, 80.0, 80.0),
            (192, 352),
        ),
    ],
)
def test_geometry(fields: dict, box: tuple, size: tuple) -> None:
    draw("targets/a.png", (120, 80))
    draw("before/a.png", (240, 160), seed=1)
    configuration = configured(**{"resolution": 256} | fields)
    go(configuration)
    (sample,) = table(configuration).samples
    assert sample.target.box == box
    assert sample.target.size == size
    assert sample.references[0].box == tuple(2 * edge for edge in box)  # strict
    if fields:
        assert folder(configuration) != folder(configured(resolution=256))


def test_a_random_place_belongs_to_the_seed() -> None:
    draw("targets/a.png", (120, 80))
    draw("before/a.png", (120, 80), seed=1)
    boxes = set()
    for seed in range(4):
        configuration = configured(crop=True, crop_style="random", settings={"seed": seed})
        go(configuration)
        (sample,) = table(configuration).samples
        assert sample.references[0].box == sample.target.box
        boxes.add(sample.target.box)
    assert len(boxes) == 4


def test_a_window_of_a_reduced_picture() -> None:
    draw("targets/a.bmp", (300, 200))
    draw("before/a.bmp", (30, 20), seed=1)
    reduced = {"maximum_image_size": 128, "target_downsample_size": 96}
    configuration = configured(crop=True, resolution=64, **reduced)
    go(configuration)
    left, top, right, bottom = table(configuration).samples[0].target.box
    # taken as 96 * 96 pixels: a scale of 96 / sqrt(300 * 200)
    edge = 64 / (96 / (300 * 200) ** 0.5)
    assert (right - left, bottom - top) == pytest.approx((edge, edge))
    assert (left, top) == pytest.approx(((300 - edge) / 2, (200 - edge) / 2))


CAPTIONS = "a cat, old, red\nmake it"


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({}, ("a cat, old, red", "make it")),
        ({"disable_multiline_split": True}, (CAPTIONS,)),
        (
            {"instance_prompt": "x", "prepend_instance_prompt": True},
            ("x a cat, old, red", "x make it"),
        ),
        ({"instance_prompt": ["x", "y"], "only_instance_prompt": True}, ("x", "y")),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "x"}, ("x",)),
        ({"caption_strategy": "filename"}, ("a b",)),
        ({"caption_filter_list": [", old", "s/make/paint/"]}, ("a cat, red", "paint it")),
        (
            {"caption_shuffle": {
                "enable": True, "position_start": 2, "count": 1, "include_original": False,
            }},
            ("a cat, old, red", "make it"),
        ),
    ],
)  # fmt: skip
def test_captions(fields: dict, captions: tuple[str, ...]) -> None:
    draw("targets/a_b.png")
    draw("before/a_b.png", seed=1)
    Path("targets/a_b.txt").write_text(CAPTIONS)
    configuration = configured(**{"caption_strategy": "textfile"} | fields)
    go(configuration)
    assert table(configuration).samples[0].captions == captions
    if fields:
        assert folder(configuration) != folder(configured(caption_strategy="textfile"))


def test_a_caption_table_and_a_change_in_it() -> None:
    draw("targets/cafe\u0301.png")
    draw("before/caf\u00e9.png", seed=1)
    rows = Path("captions.jsonl")
    rows.write_text(json.dumps({"filename": "caf\u00e9.png", "caption": "red"}) + "\n", "utf-8")
    fields = {"caption_strategy": "jsonl", "jsonl": {"path": "captions.jsonl"}}
    configuration = configured(**fields)
    go(configuration)
    assert table(configuration).samples[0].captions == ("red",)
    rows.write_text(json.dumps({"filename": "caf\u00e9.png", "caption": "blue!"}) + "\n", "utf-8")
    assert go(configuration).facts["changed"] == 1
    assert table(configuration).samples[0].captions == ("blue!",)


def test_captions_of_a_reference_dataset_are_the_targets_own() -> None:
    pairs(1)
    Path("before/0.txt").write_text("of the reference")
    Path("targets/0.txt").write_text("of the target")
    fields = {"caption_strategy": "textfile", "reference": {"caption_strategy": None}}
    configuration = configured(**fields)
    go(configuration)
    assert table(configuration).samples[0].captions == ("of the target",)


def test_missing_captions_may_be_empty_ones() -> None:
    pairs(2)
    Path("targets/0.txt").write_text("red")
    configuration = configured(caption_strategy="textfile", missing_caption="empty")
    assert rejected(configuration) == {}
    assert [one.captions for one in table(configuration).samples] == [("red",), ("",)]


def test_captions_without_a_target_and_files_of_other_kinds_are_told() -> None:
    pairs(1)
    for name in ("0.txt", "typo.txt", "old/1.txt", "notes.md", "LICENSE", "raw"):
        Path("targets", name).parent.mkdir(exist_ok=True)
        Path("targets", name).write_text("red")
    progress = Silent()
    run(configured(caption_strategy="textfile"), progress)
    told = "targets: left out, no pictures by their names: 1 .md, 1 LICENSE, 1 raw"
    assert told in progress.lines
    (told,) = [line for line in progress.lines if "no picture of their name" in line]
    assert told.startswith("targets: 2 texts")
    assert told.endswith("the first is old/1.txt")
    Path("captions.csv").write_text("filename,caption\n0,red\nother.png,blue\n")
    progress = Silent()
    fields = {"caption_strategy": "csv", "csv": {"path": "captions.csv"}}
    run(configured(**fields), progress)
    assert any("captions.csv: 1 rows name no picture" in line for line in progress.lines)


# --- files that the system does not hand over, and names that steer a terminal


def test_a_folder_and_a_caption_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """File permissions do not stop root: the system call is made to fail instead."""
    pairs(2)
    for number in range(2):
        Path(f"targets/{number}.txt").write_text("red")
    draw("targets/locked/a.png")
    scandir, read = os.scandir, Path.read_bytes

    @contextmanager
    def listing(path: Path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        with scandir(path) as entries:
            yield entries

    def reading(path: Path) -> bytes:
        if path.name == "1.txt":
            raise PermissionError(13, "Permission denied")
        return read(path)

    configuration = configured(caption_strategy="textfile")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", listing)
        patch.setattr(Path, "read_bytes", reading)
        assert rejected(configuration) == {
            "locked": "permission_denied",
            "1.png": "permission_denied",
        }
    Path("targets/locked/a.png").unlink()
    assert rejected(configuration) == {}


def test_names_cannot_steer_the_terminal() -> None:
    pairs(1)
    for where in ("targets", "before"):
        draw(f"{where}/red \x1b[31m\nline.png")
    damage("targets/red \x1b[31m\nline.png")
    with pytest.raises(NotComplete) as stopped:
        go(configured())
    assert "\x1b" not in str(stopped.value)
    assert "red \\x1b[31m\\nline.png: " in str(stopped.value)
