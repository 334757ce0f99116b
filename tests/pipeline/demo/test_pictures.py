"""The demo's pictures: real edits, paired by path, varied as people's folders are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import upright
from PIL import Image, ImageOps

from qedit.cache.errors import WrongUse
from qedit.cache.files.fingerprint import digest_file
from qedit.pipeline.demo import pictures
from qedit.pipeline.demo.pictures import draw_demo_pictures

GROUPS = {
    "one-reference": {"edited", "reference"},
    "two-references": {"edited", "reference-a", "reference-b"},
    "three-references": {"edited", "reference-a", "reference-b", "reference-c"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_demo_pictures(tmp_path_factory.mktemp("demo") / "pictures")


def pictures_in(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for path in sorted(folder.rglob("*.*"))
        if path.suffix != ".txt"
    }


def exif_orientation(path: Path) -> int:
    with Image.open(path) as picture:
        return int(picture.getexif().get(0x0112, 1))


def content(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): digest_file(path) for path in files}


@pytest.mark.parametrize("group", GROUPS)
def test_every_edited_picture_has_its_references_and_a_caption(root: Path, group: str) -> None:
    assert {path.name for path in (root / group).iterdir()} == GROUPS[group]
    names = {folder: set(pictures_in(root / group / folder)) for folder in GROUPS[group]}
    assert all(found == names["edited"] for found in names.values())
    assert len(names["edited"]) >= 6
    for name in names["edited"]:
        caption = (root / group / "edited" / f"{name}.txt").read_text(encoding="utf-8")
        assert caption.strip()
        assert caption.endswith("\n")


def test_an_edit_changes_the_picture_and_keeps_its_size(root: Path) -> None:
    group = root / "one-reference"
    references = pictures_in(group / "reference")
    for name, path in pictures_in(group / "edited").items():
        target, reference = upright(path), upright(references[name])
        assert target.size == reference.size, name
        far = np.abs(np.asarray(target, int) - np.asarray(reference, int)).max(axis=-1) > 40
        assert far.mean() > 0.005, name


def test_a_recoloured_picture_differs_in_the_thing_alone(root: Path) -> None:
    group = root / "one-reference"
    target = upright(pictures_in(group / "edited")["purple-snow"])
    reference = upright(pictures_in(group / "reference")["purple-snow"])
    far = np.abs(np.asarray(target, int) - np.asarray(reference, int)).max(axis=-1) > 40
    assert 0.005 < far.mean() < 0.15


def test_a_mirrored_picture_is_its_reference_mirrored(root: Path) -> None:
    group = root / "one-reference"
    target = upright(pictures_in(group / "edited")["mirrored-beach"])
    reference = upright(pictures_in(group / "reference")["mirrored-beach"])
    difference = np.asarray(ImageOps.mirror(target), int) - np.asarray(reference, int)
    assert np.abs(difference).mean() < 2  # one of them may be JPEG


def test_they_vary_as_people_s_pictures_do(root: Path) -> None:
    sizes, rotated, see_through = set(), 0, 0
    paths = [path for path in root.rglob("*") if path.suffix in (".png", ".jpg")]
    for path in paths:
        with Image.open(path) as picture:
            sizes.add(picture.size)
            rotated += picture.getexif().get(0x0112, 1) != 1
            see_through += picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] == 0
    captions = [path.read_text(encoding="utf-8").splitlines() for path in root.rglob("*.txt")]
    assert {path.suffix for path in paths} == {".png", ".jpg"}
    assert len({round(width / height, 1) for width, height in sizes}) >= 5
    assert all(160 <= max(size) <= 320 for size in sizes)
    assert rotated == 1
    assert see_through >= 1
    assert {len(lines) for lines in captions} == {1, 2}
    assert any("/" in name for name in pictures_in(root / "one-reference" / "edited"))


def test_the_rotated_one_stands_upright_beside_its_target(root: Path) -> None:
    group = root / "one-reference"
    (name,) = [
        name
        for name, path in pictures_in(group / "reference").items()
        if exif_orientation(path) == 6
    ]
    target = upright(pictures_in(group / "edited")[name])
    reference = upright(pictures_in(group / "reference")[name])
    sky = slice(0, target.height // 4)
    difference = np.asarray(target, int)[sky, :20] - np.asarray(reference, int)[sky, :20]
    assert np.abs(difference).mean() < 4


def test_they_are_the_same_pictures_every_time(root: Path, tmp_path: Path) -> None:
    assert content(draw_demo_pictures(tmp_path / "again")) == content(root)


def test_a_second_call_finds_them_done(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(pictures, "picture_of", never)
    assert draw_demo_pictures(root) == root
    with pytest.raises(AssertionError, match="drawn again"):
        draw_demo_pictures(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_version_is_drawn_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures, "_one_reference", lambda: [])
    monkeypatch.setattr(pictures, "_three_references", lambda: [])
    folder = draw_demo_pictures(tmp_path / "pictures")
    (folder / "one-reference").mkdir()
    (folder / "one-reference" / "stale.txt").write_text("from an older version")
    monkeypatch.setattr(pictures, "VERSION", pictures.VERSION + 1)
    draw_demo_pictures(folder)
    assert not (folder / "one-reference" / "stale.txt").exists()


def test_somebody_s_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(WrongUse, match="does not hold the demo's pictures"):
        draw_demo_pictures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
