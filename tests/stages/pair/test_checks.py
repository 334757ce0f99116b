"""Bad input to `pair`: every rejection has a reason, and impossible folders are refused."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Callable
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
    pairs,
    rejected,
    table,
)

from qedit.cache.errors import WrongUse
from qedit.stages.pair.checks import REASONS, WARNINGS
from qedit.stages.pair.scan import scan
from qedit.stages.pair.stage import run
from qedit.stages.samples.table import read_rejections


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
    paths = found.pictures.paths
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
