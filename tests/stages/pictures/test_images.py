"""Pictures as every encoder gets them."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from qedit.stages.pictures import images
from qedit.stages.pictures.images import Unreadable, open_upright, picture_of, pixels, resized


def noise(width: int, height: int, channels: int = 3, *, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def as_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{ending}", noise(40, 24), exif=exif)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    opened = open_upright(path)
    assert opened.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert np.array_equal(as_array(opened), as_array(expected))


def test_orientation_six_brings_the_left_edge_up(tmp_path):
    picture = Image.new("RGB", (4, 2))
    picture.putpixel((0, 1), (255, 0, 0))  # bottom left as stored: top left once turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_upright(saved(tmp_path / "a.png", picture, exif=exif))
    assert opened.size == (2, 4)
    assert opened.getpixel((0, 0)) == (255, 0, 0)


def test_a_torn_exif_block_is_no_orientation(tmp_path):
    path = saved(tmp_path / "a.jpg", noise(16, 8), exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")
    with images.quiet_decoding():
        assert open_upright(path).size == (16, 8)


def test_alpha_is_composited_on_the_background(tmp_path):
    assert images.BACKGROUND == (255, 255, 255)
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (100, 0, 200, alpha))
    opened = open_upright(saved(tmp_path / "a.png", picture))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((2, 0)) == (100, 0, 200)
    half = [round(255 + (value - 255) * 128 / 255) for value in (100, 0, 200)]
    assert np.abs(np.array(opened.getpixel((1, 0))) - half).max() <= 1


def test_opaque_alpha_changes_nothing(tmp_path):
    picture = noise(20, 10)
    with_alpha = picture.copy()
    with_alpha.putalpha(255)
    path = saved(tmp_path / "a.png", with_alpha)
    assert np.array_equal(as_array(open_upright(path)), as_array(picture))


def test_palette_with_transparency(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    opened = open_upright(saved(tmp_path / "a.png", picture, transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_grey_with_alpha_and_plain_grey(tmp_path):
    grey = Image.new("LA", (1, 1), (50, 0))
    assert open_upright(saved(tmp_path / "a.png", grey)).getpixel((0, 0)) == (255, 255, 255)
    plain = Image.new("L", (1, 1), 50)
    assert open_upright(saved(tmp_path / "b.png", plain)).getpixel((0, 0)) == (50, 50, 50)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, ending):
    stored = np.array([[0, 257, 128 * 257, 40000, 65535]], dtype=np.uint16)
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(stored))
    opened = as_array(open_upright(path))[0, :, 0]
    assert opened.tolist() == [0, 1, 128, round(40000 / 257), 255]


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path):
    """Written by hand: Pillow writes no tRNS for this mode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(b"\0" + struct.pack(">2H", 1000, 30000))
    header = struct.pack(">2I5B", 2, 1, 16, 0, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", 1000))
        + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )  # fmt: skip
    grey = round(30000 / 257)
    assert as_array(open_upright(path)).tolist() == [[[255] * 3, [grey] * 3]]


def test_cmyk_and_one_bit_become_rgb(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = open_upright(saved(tmp_path / "a.jpg", cmyk, quality=95)).getpixel((4, 4))
    assert red > 200
    assert green < 60
    assert blue < 60
    bits = Image.new("1", (2, 2), 1)
    assert open_upright(saved(tmp_path / "b.png", bits)).getpixel((0, 0)) == (255, 255, 255)


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(Unreadable) as refused:
        open_upright(path)
    assert refused.value.reason == "unsupported_depth"
    assert "a.tif" in refused.value.what


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for ending in ("gif", "webp"):
        path = tmp_path / f"a.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = open_upright(path).getpixel((0, 0))
        assert red > 250 > 5 > blue


def broken_files() -> dict[str, tuple[bytes, str]]:
    good = io.BytesIO()
    noise(64, 48).save(good, "JPEG", quality=90)
    jpeg = good.getvalue()
    good = io.BytesIO()
    noise(64, 48).save(good, "PNG")
    png = good.getvalue()
    huge = bytearray(png)
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    return {
        "text": (b"this is no picture at all, only its name says so", "not_a_picture"),
        "half jpeg": (jpeg[: len(jpeg) // 2], "unreadable"),
        "jpeg without its end": (jpeg[:-40], "unreadable"),
        "jpeg header": (jpeg[:30], "unreadable"),
        "half png": (png[: len(png) // 2], "unreadable"),
        "png signature": (png[:8], "unreadable"),
        "flipped bit": (png[:100] + bytes([png[100] ^ 4]) + png[101:], "unreadable"),
        "giant header": (bytes(huge), "too_many_pixels"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_files_have_a_reason(tmp_path, name):
    data, reason = broken_files()[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(Unreadable) as refused:
        open_upright(path)
    assert refused.value.reason == reason
    with pytest.raises(Unreadable, match="shown by this name"):
        open_upright(io.BytesIO(data), name="shown by this name")


def test_no_truncation_of_a_jpeg_goes_through(tmp_path):
    stored = io.BytesIO()
    noise(96, 64).save(stored, "JPEG", quality=90)
    data = stored.getvalue()
    with images.quiet_decoding():
        for length in range(1, len(data) - 2, 97):
            with pytest.raises(Unreadable):
                open_upright(io.BytesIO(data[:length]), name=str(length))


def test_flipped_bits_never_raise_anything_else():
    with images.quiet_decoding():
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
            stored = io.BytesIO()
            noise(24, 16).save(stored, kind)
            data = stored.getvalue()
            draws = np.random.default_rng(len(data))
            for place in draws.integers(0, len(data), 60):
                torn = bytearray(data)
                torn[place] ^= 1 << int(draws.integers(8))
                with contextlib.suppress(Unreadable):
                    assert open_upright(io.BytesIO(bytes(torn))).mode == "RGB"


def test_large_pictures_below_the_limit_open_without_a_warning(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("1", (12000, 8000)))  # 96 MP: Pillow's own warns
    with path.open("rb") as file:
        assert images.decode(file).size == (12000, 8000)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(Unreadable) as refused:
        open_upright(tmp_path / "gone.png")
    assert refused.value.reason == "not_readable_now"


def test_the_whole_picture_is_resized_as_the_pipelines_do(tmp_path):
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=16)
    for width, height in ((101, 67), (640, 480), (33, 200), (96, 64)):
        picture = noise(width, height, seed=width)
        ours = resized(picture, (0.0, 0.0, float(width), float(height)), (96, 64))
        theirs = processor.resize(picture, height=64, width=96)
        assert np.array_equal(as_array(ours), as_array(theirs))
        entering = processor.preprocess(theirs, height=64, width=96)[0].numpy()
        assert entering.dtype == np.float32
        assert np.array_equal(pixels(ours), entering)


def test_a_box_in_whole_pixels_is_a_crop():
    picture = noise(60, 40)
    box = (10.0, 4.0, 42.0, 36.0)
    assert np.array_equal(
        as_array(resized(picture, box, (32, 32))), as_array(picture.crop((10, 4, 42, 36)))
    )


def test_pixels_and_back():
    picture = noise(5, 3)
    values = pixels(picture)
    assert values.shape == (3, 3, 5)
    assert values.flags.c_contiguous
    assert np.array_equal(as_array(picture_of(values)), as_array(picture))
    assert picture_of(np.full((3, 1, 1), 9.0, np.float32)).getpixel((0, 0)) == (255, 255, 255)
    assert pixels(Image.new("RGB", (1, 1), (255, 0, 0))).ravel().tolist() == [1.0, -1.0, -1.0]
