"""Writes bad files of every kind that a folder of pictures collects."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIZE = (48, 32)


def noise(size: tuple[int, int] = SIZE, *, seed: int = 0, bands: int = 3) -> Image.Image:
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def moving(kind: str, **options: object) -> bytes:
    frames = [noise(seed=number) for number in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def png_of(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow writes no giant headers and no RGB of 16 bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + check

    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = chunk(b"IHDR", sides + bytes([depth, colour, 0, 0, 0]))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def deep_rgb() -> bytes:
    values = np.random.default_rng(3).integers(0, 65536, (SIZE[1], SIZE[0], 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return png_of(*SIZE, depth=16, rows=rows)


def giant_jpeg() -> bytes:
    """A sound JPEG whose header says 65500 x 65500."""
    data = bytearray(encoded(noise(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (65500).to_bytes(2, "big") * 2
    return bytes(data)


def giant_gif() -> bytes:
    data = bytearray(encoded(noise(), "GIF"))
    data[6:10] = (65535).to_bytes(2, "little") * 2
    return bytes(data)


def with_clear_palette() -> bytes:
    palette = noise().quantize(16)
    palette.info["transparency"] = 3
    return encoded(palette, "PNG", transparency=3)


def deep_grey() -> bytes:
    values = np.random.default_rng(4).integers(0, 65536, (SIZE[1], SIZE[0])).astype(np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def progressive() -> bytes:
    return encoded(noise((64, 64)), "JPEG", progressive=True)


def noted(size: int) -> bytes:
    """A PNG with a packed text of that size."""
    note = PngInfo()
    note.add_text("prompt", "y" * size, zip=True)
    return encoded(noise(), "PNG", pnginfo=note)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise((SIZE[1], SIZE[0])), "JPEG", exif=exif)


# name -> what lies in it; these are rejected, with this reason
REJECTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero.jpg": (lambda: b"", "zero_bytes"),
    "text.png": (lambda: b"<html>404 not found</html>", "not_a_picture"),
    "pdf.jpg": (lambda: b"%PDF-1.4\n1 0 obj\n", "not_a_picture"),
    "postscript.png": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "not_a_picture",
    ),
    "svg.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_a_picture"),
    "zeros.png": (lambda: bytes(4096), "not_a_picture"),
    "half.jpg": (lambda: encoded(noise(), "JPEG")[:600], "unreadable"),
    "scans.jpg": (lambda: progressive()[:-30], "unreadable"),  # all but the last of the passes
    "heic.jpg": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "not_a_picture"),
    "library.png": (lambda: noted((64 << 20) + 1), "unreadable"),
    "half.png": (lambda: encoded(noise(), "PNG")[:600], "unreadable"),
    "half.webp": (lambda: encoded(noise(), "WEBP")[:300], "unreadable"),
    "half.gif": (lambda: encoded(noise(), "GIF")[:900], "unreadable"),
    "half.tif": (lambda: encoded(noise(), "TIFF")[:900], "unreadable"),
    "half.bmp": (lambda: encoded(noise(), "BMP")[:900], "unreadable"),
    "head.png": (lambda: b"\x89PNG\r\n\x1a\n", "unreadable"),
    "no-data.png": (lambda: png_of(48, 32), "unreadable"),
    "giant.png": (lambda: png_of(60000, 60000), "too_many_pixels"),
    "giant.jpg": (giant_jpeg, "too_many_pixels"),
    "giant.gif": (giant_gif, "too_many_pixels"),
    "float.tif": (lambda: encoded(noise(bands=1).convert("F"), "TIFF"), "unsupported_depth"),
    "strip.png": (lambda: encoded(Image.new("RGB", (60000, 1)), "PNG"), "ratio_out_of_bounds"),
    "pole.png": (lambda: encoded(Image.new("RGB", (1, 60000)), "PNG"), "ratio_out_of_bounds"),
}
# these are trained on, with these warnings
ACCEPTED: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "dot.png": (lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), {"upscaled"}),
    "cmyk.jpg": (lambda: encoded(noise().convert("CMYK"), "JPEG"), set()),
    "progressive.jpg": (progressive, set()),
    "profile.jpg": (lambda: encoded(noise(), "JPEG", icc_profile=b"x" * 400_000), set()),
    "exif.jpg": (lambda: encoded(noise(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 65_000), set()),
    "noted.png": (lambda: noted(90_000), set()),
    "workflow.png": (lambda: noted(9_000_000), set()),
    "grey.jpg": (lambda: encoded(noise(bands=1), "JPEG"), set()),
    "bits.png": (lambda: encoded(noise().convert("1"), "PNG"), set()),
    "palette.png": (with_clear_palette, {"alpha"}),
    "see-through.png": (lambda: encoded(noise(bands=4), "PNG"), {"alpha"}),
    "deep-grey.png": (deep_grey, {"sixteen_bits"}),
    "deep-rgb.png": (deep_rgb, {"sixteen_bits"}),
    "moving.gif": (lambda: moving("GIF"), {"several_frames"}),
    "moving.webp": (lambda: moving("WEBP", lossless=True), {"several_frames"}),
    "moving.png": (lambda: moving("PNG"), {"several_frames"}),
    "turned.jpg": (turned, {"exif_rotated"}),
    "a-jpeg.png": (lambda: encoded(noise(), "JPEG"), set()),  # the content counts, not the name
    "a-webp.jpg": (lambda: encoded(noise(), "WEBP"), set()),
    "UPPER.JPG": (lambda: encoded(noise(), "JPEG"), set()),
    "trailing.jpg": (lambda: encoded(noise(), "JPEG") + b"\0" * 999, set()),
    "with space.png": (lambda: encoded(noise(), "PNG"), set()),
    "quote'\".png": (lambda: encoded(noise(), "PNG"), set()),
    "new\nline.png": (lambda: encoded(noise(), "PNG"), set()),
    "\N{CAT}.png": (lambda: encoded(noise(), "PNG"), set()),
    "<b>&amp;.png": (lambda: encoded(noise(), "PNG"), set()),
    "-n.png": (lambda: encoded(noise(), "PNG"), set()),
    "%s {0} \\n.png": (lambda: encoded(noise(), "PNG"), set()),
}


def truncations(kind: str, **options: object) -> Iterator[tuple[int, bytes, bytes]]:
    """How much is left, the cut file, the whole one: dense at both ends, then every 37 bytes."""
    whole = encoded(noise(), kind, **options)
    cuts = {*range(40), *range(40, len(whole), 97), *range(len(whole) - 24, len(whole))}
    for left in sorted(cuts):
        yield left, whole[:left], whole


def flips(kind: str, **options: object) -> Iterator[tuple[int, bytes]]:
    """The place of the flipped bit, and the file with it flipped."""
    whole = encoded(noise(), kind, **options)
    for bit in {*range(0, 8 * 48, 5), *range(0, 8 * len(whole), 8 * 61 + 3)}:
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(spoiled)


def put(folder: Path, files: dict[str, tuple[Callable[[], bytes], object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in files.items():
        (folder / name).write_bytes(make())


def put_what_is_no_file(folder: Path) -> dict[str, str]:
    """Things that look like pictures by their names; name as reported -> reason."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    os.symlink("nowhere.png", folder / "gone.png")
    os.symlink("loop.png", folder / "loop.png")
    os.symlink("pong.png", folder / "ping.png")
    os.symlink("ping.png", folder / "pong.png")
    os.symlink(".", folder / "self")
    (folder / "empty").mkdir()
    for name in ("photo.HEIC", "drawing.svg", "page.pdf"):
        (folder / name).write_bytes(b"whatever")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(encoded(noise(), "PNG"))
    return {
        "pipe.png": "not_a_picture",
        "gone.png": "broken_link",
        "loop.png": "not_readable_now",
        "ping.png": "not_readable_now",
        "pong.png": "not_readable_now",
        **dict.fromkeys(("photo.HEIC", "drawing.svg", "page.pdf"), "unsupported_format"),
        "\\xff\\xfe.png": "name_not_utf8",
    }
