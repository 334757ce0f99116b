"""Masks as loss weights: grey, alpha, depth, geometry, and what is rejected."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import loaded, make_run, said, with_files

from qedit.stages.cache_vae.encoding import signed_values
from qedit.stages.cache_vae.masks import weights_of
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.pictures.images import pixels
from qedit.stages.pictures.mask_weights import open_mask
from qedit.stages.stores.bfloat16 import tensor_of
from qedit.stages.stores.run_stores import open_stores


def weighed(mask: Image.Image, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return weights_of(mask, (0.0, 0.0, float(mask.width), float(mask.height)), size)


def halves(left: int, right: int, *, mode: str = "L") -> Image.Image:
    values = np.repeat(np.array([[left] * 32 + [right] * 32]), 64, axis=0)
    return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))


def test_white_counts_black_does_not_and_grey_in_proportion() -> None:
    weights = weighed(halves(255, 51))
    assert weights.shape == (1, 4, 4)
    assert np.allclose(weights[0, :, :2], 1.0)
    assert np.allclose(weights[0, :, 2:], 0.2)
    assert np.array_equal(weighed(halves(0, 255))[0, :, :2], np.zeros((4, 2)))


def test_weights_are_the_means_of_areas() -> None:
    values = np.random.default_rng(0).integers(0, 256, (48, 96), dtype=np.uint8)
    weights = weighed(Image.fromarray(values), (64, 32))
    expected = values.reshape(4, 12, 8, 12).mean(axis=(1, 3)) / 255
    assert np.allclose(weights[0], expected, atol=1e-6)


def test_only_the_box_is_looked_at() -> None:
    weights = weights_of(halves(255, 0), (16.0, 0.0, 48.0, 64.0), (32, 64))
    assert np.allclose(weights[0], np.repeat([[1.0, 1.0, 0.0, 0.0]], 8, axis=0))


def test_sixteen_bits_keep_their_depth() -> None:
    weights = weighed(halves(65535, 257, mode="I;16"))
    assert np.allclose(weights[0, 0], [1.0, 1.0, 1 / 255, 1 / 255])


def test_what_is_transparent_does_not_count() -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 32, 64))
    mask.paste((255, 255, 255, 51), (32, 0, 48, 64))
    assert np.allclose(weighed(mask)[0, 0], [1.0, 1.0, 0.2, 0.0])


def test_colour_counts_by_its_luminance() -> None:
    mask = Image.new("RGB", (64, 64), (255, 0, 0))
    assert np.allclose(weighed(mask), 0.299, atol=0.002)


def test_masks_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    halves(255, 0).save(file, "PNG", exif=exif)
    file.seek(0)
    # what was left stands at the top once it is turned clockwise
    assert np.allclose(weighed(open_mask(file))[0, :, 0], [1.0, 1.0, 0.0, 0.0])


def test_bytes_become_what_the_pictures_of_pipelines_are() -> None:
    values = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    found = signed_values()[torch.from_numpy(values).long()].permute(2, 0, 1).numpy()
    assert np.array_equal(found, pixels(Image.fromarray(values)))


# -- in a run --------------------------------------------------------------------------


@pytest.fixture
def masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a mask for every target."""
    folder = make_run(tmp_path)
    data = json.loads((folder / "data.json").read_text())
    data[0]["conditioning_data"].append("masks")
    data.append(
        {
            "id": "masks",
            "dataset_type": "conditioning",
            "conditioning_type": "mask",
            "instance_data_dir": "masks",
        }
    )
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "masks").mkdir()
    for target in sorted((folder / "edited").glob("*.png")):
        with Image.open(target) as picture:
            mask = Image.new("L", picture.size, 0)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        mask.save(folder / "masks" / target.name)
    monkeypatch.chdir(folder)
    return folder


def test_masks_become_rows_beside_the_latents(masked: Path) -> None:
    with_files("pair")
    done = said(with_files("cache-vae", "--json"))
    # two masks are one file at one size
    assert (done["computed"], done["failed"]) == (8 + 3, 0)
    found = loaded()
    stores = open_stores(found, open_checkpoint(found.settings))
    (store,) = stores.weights.stores()
    shapes = set()
    for key in sorted(store.keys()):
        row = tensor_of(store.read(key)).float()
        shapes.add(tuple(row.shape))
        columns = row[0, 0]
        assert columns[0] == 1.0
        assert columns[-1] == 0.0
        assert row.mean() == pytest.approx(0.5, abs=0.02)
    assert {tuple(one[-2:]) for one in shapes} == {
        tuple(stores.latents.shape(key, dataset="edited")[-2:])
        for key in sorted(stores.latents.of("edited").keys())
    }
    assert "mask weights" in with_files("status").stdout
    assert "nothing to do" in with_files("cache-vae").stdout


def test_a_black_mask_is_a_rejection(masked: Path) -> None:
    Image.new("L", (96, 96), 0).save(masked / "masks" / "p0.png")
    with_files("pair", "--quick")  # in full, pair sees it itself
    error = with_files("cache-vae", expect=4).stderr
    assert "masks: p0.png: empty_mask" in error
    done = said(with_files("cache-vae", "--on-reject", "skip", "--json"))
    assert (done["kept"], done["computed"], done["failed"]) == (11, 0, 1)
