"""Sizes and boxes, against the table of sizes that the pipelines' rule gives."""

from __future__ import annotations

import ast
import math
import random
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from qedit.stages.pair import geometry
from qedit.stages.pair.geometry import Framing, same_part, size_of_area, target_box, target_size

MEGAPIXEL = 1024 * 1024
DIGEST = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((1000, 1002), (1024, 1024)),
        ((1920, 1080), (1376, 768)),
        ((1080, 1920), (768, 1376)),
        ((1216, 832), (1248, 832)),
        ((768, 1344), (768, 1344)),
        ((1500, 1000), (1248, 832)),
        ((4000, 3000), (1184, 896)),
        ((640, 480), (1184, 896)),
        ((3000, 1000), (1760, 576)),
    ],
)
def test_table_of_sizes_at_one_megapixel(picture, size):
    assert size_of_area(MEGAPIXEL, picture[0] / picture[1]) == size
    framing = Framing(resolution=1024)
    assert target_size(target_box(picture, framing, digest=DIGEST), framing) == size


@pytest.mark.parametrize(
    ("picture", "size"),
    [((1920, 1080), (512, 288)), ((832, 1216), (320, 480)), ((4000, 3000), (448, 320))],
)
def test_table_of_sizes_for_the_language_model(picture, size):
    assert size_of_area(384 * 384, picture[0] / picture[1]) == size


def calculate_dimensions():
    """The pipelines' own function, without importing the pipeline (and torch) for it."""
    (folder,) = find_spec("diffusers").submodule_search_locations
    path = Path(folder, "pipelines/qwenimage/pipeline_qwenimage_edit_plus.py")
    (found,) = (
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "calculate_dimensions"
    )
    names = {"math": math}
    exec(compile(ast.Module([found], []), str(path), "exec"), names)
    return names["calculate_dimensions"]


def test_sizes_are_those_of_the_pipelines():
    theirs = calculate_dimensions()
    draws = random.Random(0)
    for _ in range(2000):
        ratio = draws.randint(100, 4000) / draws.randint(500, 800)
        for area in (MEGAPIXEL, 384 * 384, 512 * 512, 768 * 768):
            assert size_of_area(area, ratio) == theirs(area, ratio)


@pytest.mark.parametrize("picture", [(1, 60000), (60000, 1), (1, 1), (7, 3)])
@pytest.mark.parametrize("edge", [32, 64, 384, 1024])
def test_no_side_vanishes_or_explodes(picture, edge):
    for kind in ("pixel_area", "pixel"):
        framing = Framing(resolution=edge, resolution_type=kind)
        width, height = target_size(target_box(picture, framing, digest=DIGEST), framing)
        assert width >= 32
        assert height >= 32
        assert width % 32 == height % 32 == 0
        assert max(width, height) <= 256 * 1024


def test_a_strip_of_sixty_thousand_pixels_keeps_about_its_area():
    for area in (MEGAPIXEL, 384 * 384):
        width, height = size_of_area(area, 1 / 60000)
        assert width < height
        assert area / 2 < width * height < area * 2


@pytest.mark.parametrize(
    ("framing", "picture", "size"),
    [
        (Framing(1024, "pixel_area"), (1920, 1080), (1376, 768)),
        (Framing(1.0, "area"), (1920, 1080), (1376, 768)),
        (Framing(0.25, "area"), (1000, 1000), (512, 512)),
        (Framing(512, "pixel_area"), (1000, 1000), (512, 512)),
        (Framing(512, "pixel"), (1920, 1080), (896, 512)),  # 512 * 16/9 = 910.2 -> 28.4 * 32
        (Framing(512, "pixel"), (1080, 1920), (512, 896)),
        (Framing(500, "pixel"), (300, 300), (512, 512)),
    ],
)
def test_resolution_types(framing, picture, size):
    assert target_size(target_box(picture, framing, digest=DIGEST), framing) == size


def test_without_crop_the_whole_picture_is_used():
    framing = Framing(1024, crop_aspect="square", crop_style="random")
    assert target_box((1920, 1080), framing, digest=DIGEST) == (0.0, 0.0, 1920.0, 1080.0)


@pytest.mark.parametrize(
    ("style", "box"),
    [("center", (250.0, 0.0, 1250.0, 1000.0)), ("corner", (0.0, 0.0, 1000.0, 1000.0))],
)
def test_square_crop(style, box):
    framing = Framing(1024, crop=True, crop_style=style)
    assert target_box((1500, 1000), framing, digest=DIGEST) == box
    assert target_size(box, framing) == (1024, 1024)


def test_crop_of_a_tall_picture_and_half_pixels():
    framing = Framing(1024, crop=True)
    assert target_box((1000, 1501), framing, digest=DIGEST) == (0.0, 250.5, 1000.0, 1250.5)


def test_preserve_crops_nothing_from_any_picture():
    framing = Framing(1024, crop=True, crop_aspect="preserve", crop_style="random")
    for picture in [(1920, 1080), (333, 1000), (997, 991), (1, 8)]:
        assert target_box(picture, framing, digest=DIGEST) == geometry.whole(picture)


def test_closest_takes_the_nearest_of_the_ratios():
    framing = Framing(1024, crop=True, crop_aspect="closest", crop_ratios=(2.0, 0.5, 1.0))
    assert target_box((1900, 1000), framing, digest=DIGEST) == (0.0, 25.0, 1900.0, 975.0)
    assert target_box((1100, 1000), framing, digest=DIGEST) == (50.0, 0.0, 1050.0, 1000.0)
    assert target_box((500, 1000), framing, digest=DIGEST) == (0.0, 0.0, 500.0, 1000.0)


def test_random_crops_belong_to_content_and_seed():
    framing = Framing(1024, crop=True, crop_aspect="random", crop_style="random", seed=1)
    digests = [f"{number:032x}" for number in range(64)]
    boxes = [target_box((1200, 1000), framing, digest=digest) for digest in digests]
    again = [target_box((1200, 1000), framing, digest=digest) for digest in reversed(digests)]
    assert boxes == again[::-1]
    assert len(set(boxes)) > 48
    assert {round(geometry.ratio_of(box), 6) for box in boxes} == {
        round(ratio, 6) for ratio in geometry.CROP_RATIOS
    }
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 1200
        assert 0 <= top < bottom <= 1000
    other = replace(framing, seed=2)
    assert [target_box((1200, 1000), other, digest=digest) for digest in digests] != boxes


def test_large_pictures_are_reduced_before_a_window_is_cut():
    framing = Framing(
        1024,
        crop=True,
        maximum_image_size=2048,
        target_downsample_size=1536,
    )
    # 4096 x 4096 taken as 1536 x 1536: a window of 1024 is two thirds of it
    left, top, right, bottom = target_box((4096, 4096), framing, digest=DIGEST)
    assert right - left == pytest.approx(4096 * 2 / 3)
    assert (left, top) == pytest.approx((4096 / 6, 4096 / 6))
    assert bottom == pytest.approx(4096 * 5 / 6)
    # below the maximum: a window of 1024 of the picture's own pixels
    assert target_box((2048, 2048), framing, digest=DIGEST) == (512.0, 512.0, 1536.0, 1536.0)
    # smaller than the window: all there is of that ratio
    assert target_box((800, 600), framing, digest=DIGEST) == (100.0, 0.0, 700.0, 600.0)


def test_strict_references_take_the_targets_part():
    assert same_part((0.0, 0.0, 1500.0, 1000.0), (1500, 1000), (751, 499)) == (
        0.0,
        0.0,
        751.0,
        499.0,
    )
    box = (250.0, 0.0, 1250.0, 1000.0)
    assert same_part(box, (1500, 1000), (1500, 1000)) == box
    assert same_part(box, (1500, 1000), (750, 500)) == (125.0, 0.0, 625.0, 500.0)


def test_boxes_never_leave_the_picture():
    draws = random.Random(3)
    for number in range(3000):
        target = (draws.randint(1, 3000), draws.randint(1, 3000))
        reference = (draws.randint(1, 3000), draws.randint(1, 3000))
        framing = Framing(
            512,
            crop=True,
            crop_aspect=draws.choice(["square", "closest", "random", "preserve"]),
            crop_style=draws.choice(["center", "corner", "random"]),
        )
        box = target_box(target, framing, digest=f"{number:032x}")
        for (left, top, right, bottom), (width, height) in (
            (box, target),
            (same_part(box, target, reference), reference),
        ):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def test_ratio_tolerance():
    assert not geometry.ratios_differ((1000, 1000), (1020, 1000), tolerance=0.02)
    assert geometry.ratios_differ((1000, 1000), (1021, 1000), tolerance=0.02)
    assert geometry.ratios_differ((1000, 1000), (1000, 1021), tolerance=0.02)
    assert not geometry.ratios_differ((1920, 1080), (640, 360), tolerance=0.0)


def test_sizes_are_measured_in_the_unit_of_the_resolution():
    assert geometry.is_smaller((511, 2000), 512, "pixel")
    assert not geometry.is_smaller((512, 512), 512, "pixel")
    assert geometry.is_smaller((511, 512), 512, "pixel_area")
    assert not geometry.is_smaller((256, 1024), 512, "pixel_area")
    assert geometry.is_smaller((1023, 1024), 1.0, "area")
    assert not geometry.is_smaller((1024, 1024), 1.0, "area")


def test_match_target_res_area():
    assert geometry.target_area((0.0, 0.0, 10.0, 10.0), Framing(512)) == 512 * 512
    assert geometry.target_area((0.0, 0.0, 10.0, 10.0), Framing(0.5, "area")) == MEGAPIXEL / 2
    assert geometry.target_area((0.0, 0.0, 20.0, 10.0), Framing(512, "pixel")) == 512 * 1024
