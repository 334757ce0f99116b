"""The corpus of bad files: nothing crashes, is dropped in silence, or is trained on by accident."""

from __future__ import annotations

import io
from pathlib import Path

import bad_pictures as bad
import numpy as np
import pytest
from picture_pairs import configured, folder, go, table

from qedit.stages.pair.checks import REASONS
from qedit.stages.pair.pictures import examine
from qedit.stages.pictures.images import open_upright, quiet_decoding
from qedit.stages.samples.table import read_rejections

pytestmark = pytest.mark.usefixtures("in_own_folder")

KINDS = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
}


def partners(names: object) -> None:
    """A sound loose reference for every target; the first differs from all targets."""
    for name in names:
        path = Path("before", name).with_suffix(".bmp")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bad.encoded(bad.noise(seed=99), "BMP"))


def test_every_bad_file_is_named_with_its_reason_and_every_odd_one_is_used() -> None:
    files = bad.REJECTED | bad.ACCEPTED
    # one stem, one file: extensions go into the stem
    names = {name: f"{number:02d}-{name}" for number, name in enumerate(files)}
    bad.put(Path("targets"), {names[name]: made for name, made in files.items()})
    partners(names.values())
    no_files = bad.put_what_is_no_file(Path("targets"))
    configuration = configured(strict=False)
    outcome = go(configuration, on_reject="skip")
    rows = read_rejections(folder(configuration))
    expected = {names[name]: reason for name, (_, reason) in bad.REJECTED.items()}
    assert {row.path: row.reason for row in rows} == expected | no_files
    assert len(rows) == len(expected | no_files)  # none twice
    details = {row.path: row.detail for row in rows}
    assert all(details.values())
    assert not [detail for detail in details.values() if "Error" in detail]  # words, no class
    assert "more than 64 MB of text" in details[names["library.png"]]
    assert sum(outcome.facts["rejected"].values()) == outcome.failed == len(rows)
    assert set(outcome.facts["rejected"]) <= set(REASONS)
    samples = table(configuration).samples
    assert {sample.name for sample in samples} == {names[name] for name in bad.ACCEPTED}


def test_warnings_of_odd_files() -> None:
    names = {name: f"{number:02d}-{name}" for number, name in enumerate(bad.ACCEPTED)}
    bad.put(Path("targets"), {names[name]: made for name, made in bad.ACCEPTED.items()})
    partners(names.values())
    configuration = configured(strict=False, resolution=32)
    go(configuration)
    kept = {"alpha", "sixteen_bits", "several_frames", "exif_rotated"}
    for sample, codes in warned(configuration):
        original = next(name for name, with_number in names.items() if with_number == sample)
        assert set(codes) & kept == bad.ACCEPTED[original][1] & kept, sample
        assert "upscaled" in codes  # every reference is 48x32 and becomes a megapixel


def warned(configuration: object) -> list[tuple[str, list[str]]]:
    import pyarrow.parquet

    (path,) = folder(configuration).glob("pairs-*.parquet")
    rows = pyarrow.parquet.read_table(path, columns=["sample", "warnings"])
    return list(zip(rows["sample"].to_pylist(), rows["warnings"].to_pylist(), strict=True))


def test_targets_that_are_references_or_twice_there() -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 3)):
        bad.put(Path("targets"), {f"{name}.png": (_png(seed), None)})
        bad.put(Path("before"), {f"{name}.png": (_png(2 if name == "c" else 50), None)})
    configuration = configured()
    go(configuration)
    found = {name: set(codes) - {"upscaled"} for name, codes in warned(configuration)}
    assert found == {
        "a.png": {"duplicate_target"},
        "b.png": {"duplicate_target"},
        "c.png": {"target_equals_reference"},
        "d.png": set(),
    }


def _png(seed: int):
    return lambda: bad.encoded(bad.noise(seed=seed), "PNG")


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_rejected_unless_every_pixel_is_there(kind: str, tmp_path: Path) -> None:
    path, rejected = tmp_path / "cut", 0
    with quiet_decoding():
        for left, data, whole in bad.truncations(kind, **KINDS[kind]):
            path.write_bytes(data)
            facts = examine(path)
            if facts.reason:
                assert facts.reason in REASONS
                assert facts.detail
                rejected += 1
                continue
            seen = np.asarray(open_upright(io.BytesIO(data)))
            assert np.array_equal(seen, np.asarray(open_upright(io.BytesIO(whole)))), left
    assert rejected > 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_never_crashes(kind: str, tmp_path: Path) -> None:
    path, rejected = tmp_path / "flipped", 0
    with quiet_decoding():
        for bit, data in bad.flips(kind, **KINDS[kind]):
            path.write_bytes(data)
            facts = examine(path)
            rejected += bool(facts.reason)
            assert facts.reason in (*REASONS, ""), bit
            if not facts.reason:  # what `pair` accepts, the encoders can open
                seen = open_upright(path)
                assert seen.size == (facts.width, facts.height), bit
    assert rejected > 5
