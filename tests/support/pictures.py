"""Writes picture files of many sizes, ratios and kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def _drawn(width: int, height: int, seed: int) -> Image.Image:
    """Shapes and a little noise: something with edges, so that a wrong resize shows."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    shapes = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = generator.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(shapes) + noise, 0, 255).astype(np.uint8))


def _save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _drawn(400, 300, 4).save(path, exif=exif, quality=95)


def _save_see_through(path: Path) -> None:
    picture = _drawn(301, 203, 5)
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path)


def _save_sixteen_bit(path: Path) -> None:
    deep = np.asarray(_drawn(250, 240, 9).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(path)


PICTURES = {
    "square.png": lambda path: _drawn(320, 320, 1).save(path),
    "landscape.jpg": lambda path: _drawn(640, 360, 2).save(path),
    "portrait.webp": lambda path: _drawn(360, 640, 3).save(path, lossless=True),
    "turned.jpg": _save_turned,
    "see-through.png": _save_see_through,
    "grey.png": lambda path: _drawn(333, 222, 6).convert("L").save(path),
    "strip.png": lambda path: _drawn(70, 512, 7).save(path),
    "odd.png": lambda path: _drawn(499, 501, 8).save(path),
    "deep.png": _save_sixteen_bit,
    "palette.gif": lambda path: _drawn(200, 150, 10).convert("P").save(path),
    "small.bmp": lambda path: _drawn(41, 37, 11).save(path),
    "banner.tif": lambda path: _drawn(600, 200, 12).save(path),
}


def upright(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
