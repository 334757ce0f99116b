"""Pictures are opened, turned upright, composited and resized here, by pure functions on pixels.

Every encoder opens pictures this way, so that the VAE and the vision language model never see two
versions of a picture.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ...cache.errors import QeditError

BinaryFile = io.BufferedReader | io.BytesIO

# Transparent parts become white: what most viewers show, and the same for every encoder.
BACKGROUND = (255, 255, 255)

# 16384 x 16384. Beyond that a few bytes of header could ask for more memory than there is.
# Pillow's own limit is a third of this, half of it only a warning; one number serves both.
MAX_PICTURE_PIXELS = 1 << 28
Image.MAX_IMAGE_PIXELS = MAX_PICTURE_PIXELS

# Of a PNG, unpacked. Tools that make pictures write how they did it beside the pixels, which can
# be many megabytes; Pillow's own limit for a packed text is one.
MAX_TEXT_BYTES = 1 << 26
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES

# What a file may hold, whatever its name ends with. Formats that run other programs (EPS) or
# that are more than pictures (PDF) are not among them.
Image.init()  # Pillow knows a format only once its plugin is loaded
FORMATS = tuple(
    name
    for name in (
        *("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF"),
        *("AVIF", "JPEG2000", "PPM"),
    )
    if name in Image.OPEN  # AVIF is left out of some builds
)
EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif"}
    | {"avif", "jp2", "ppm", "pgm", "pbm", "pnm"}
)

# How files of these formats begin: with such a beginning a file was a picture once.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class Unreadable(QeditError):
    """Raised for a file that is no usable picture; `reason` is a short code, `detail` words."""

    def __init__(self, reason: str, detail: str, *, name: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(
            f"{name}: {detail}" if name else detail, "Fix the file or take it out of its folder."
        )


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Keep Pillow's warnings (odd EXIF, large pictures) from the terminal; we judge ourselves.

    Warning filters belong to the whole process: enter this once around a pool, not in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(file: BinaryFile, *, edge: int | None = None) -> Image.Image:
    """Decode the (first) picture in `file` in full, as it is stored: not turned, not converted.

    Args:
        edge: let a JPEG come out smaller, with sides of at least so many pixels: it is decoded
            at a half, a quarter or an eighth of its size, in a fraction of the time.

    Raises:
        Unreadable: `not_a_picture`, `too_many_pixels` or `unreadable` (broken or truncated).
    """
    picture = _opened(file)
    if edge is not None:
        picture.draft(None, (edge, edge))
    try:
        picture.load()
    except Exception as error:  # broken data as well
        raise Unreadable("unreadable", _words_of(error)) from error
    return picture


def header(file: BinaryFile) -> tuple[Image.Image, int]:
    """Open the (first) picture in `file` without decoding it; return it and its EXIF orientation.

    An orientation that stands behind the pixels, as PNG allows, is not seen.

    Raises:
        Unreadable: as `decode`, for what the header alone shows.
    """
    picture = _opened(file)
    if picture.format == "PNG" and "exif" not in picture.info:
        return picture, 1  # Pillow would decode all of it to look for EXIF at its end
    if picture.format == "TIFF":
        return picture, 1  # Pillow turns it, and says the upright size beforehand
    return picture, orientation_of(picture)


def _opened(file: BinaryFile) -> Image.Image:
    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise _unidentified(file) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable("too_many_pixels", str(error)) from None
    except Exception as error:  # a broken header makes Pillow raise nearly anything
        raise Unreadable("unreadable", _words_of(error)) from error
    if picture.width * picture.height > MAX_PICTURE_PIXELS:
        raise Unreadable(
            "too_many_pixels",
            f"{picture.width}x{picture.height} pixels, at most {MAX_PICTURE_PIXELS} are read",
        )
    return picture


def orientation_of(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of a decoded picture; 1 where none (or nonsense) stands.

    It is read after decoding on purpose: before it, Pillow would decode a whole PNG for this
    alone, and TIFF files would be turned twice.
    """
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return 1  # viewers show a picture with a torn EXIF block as it is stored
    return orientation if orientation in _TURNED else 1


def upright_size(picture: Image.Image, orientation: int) -> tuple[int, int]:
    """Return the (width, height) of a picture once it is turned as this EXIF orientation says."""
    width, height = picture.size
    return (height, width) if orientation >= 5 else (width, height)


def size_in_header(path: Path) -> tuple[int, int]:
    """Read the upright (width, height) of the picture at `path` from its header alone.

    Raises:
        Unreadable: as `decode`, for what the header shows, or if the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return upright_size(*header(file))
    except OSError as error:
        raise Unreadable(os_reason(error), _words_of(error)) from error


def upright(picture: Image.Image) -> Image.Image:
    """Turn a decoded picture as its EXIF orientation says."""
    turn = _TURNED.get(orientation_of(picture))
    return picture if turn is None else picture.transpose(turn)


def has_sixteen_bits(picture: Image.Image) -> bool:
    """Return whether a decoded picture is held with more than eight bits a channel."""
    return picture.mode in _SIXTEEN_BIT_MODES or picture.mode == "F"


def on_background(picture: Image.Image) -> Image.Image:
    """Convert a decoded picture to RGB of 8 bits, transparent parts on BACKGROUND.

    Raises:
        Unreadable: `unsupported_depth` for numbers whose white is not known.
    """
    if has_sixteen_bits(picture):
        picture = _eight_bits(picture)
    if picture.mode in ("La", "RGBa"):  # premultiplied: divide first
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    seen = picture.convert("RGBA")
    ground = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
    return Image.alpha_composite(ground, seen).convert("RGB")


def is_see_through(picture: Image.Image) -> bool:
    """Return whether any pixel of a decoded picture lets the background through."""
    if not picture.has_transparency_data or has_sixteen_bits(picture):
        return "transparency" in picture.info
    covered = picture.convert("RGBA").getchannel("A").histogram()[255]
    return covered < picture.width * picture.height


def open_upright(source: Path | BinaryFile, *, name: str = "") -> Image.Image:
    """Decode a file, turned upright, composited on BACKGROUND, as RGB with 8 bits a channel.

    Args:
        source: a path, or an open binary file which messages call `name`.

    Raises:
        Unreadable: with a reason code, for whatever is wrong with the file.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return on_background(upright(decode(file)))
        return on_background(upright(decode(source)))
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail, name=name or str(source)) from error
    except OSError as error:
        raise Unreadable(os_reason(error), _words_of(error), name=name or str(source)) from error


def open_small(path: Path, edge: int) -> Image.Image:
    """Return `open_upright` of a file; a JPEG may be smaller, with sides of `edge` pixels or more.

    Raises:
        Unreadable, OSError: as `open_upright`, before it gives them a name.
    """
    with path.open("rb") as file:
        return on_background(upright(decode(file, edge=edge)))


def os_reason(error: OSError) -> str:
    """Return the reason code of a file that the operating system would not hand over."""
    return "permission_denied" if isinstance(error, PermissionError) else "not_readable_now"


def resized(
    picture: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Image.Image:
    """Cut `box` out of an upright picture and bring it to `size`, in one Lanczos resampling.

    Box edges are (fractional) source pixels. With the whole picture as the box this is
    `Image.resize(size, LANCZOS)`, which is what diffusers' pipelines do.
    """
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)


def pixels(picture: Image.Image) -> Float[np.ndarray, "3 height width"]:
    """Return an RGB picture as float32 in [-1, 1], bit-equal to diffusers' `VaeImageProcessor`."""
    unit = np.asarray(picture, dtype=np.uint8).astype(np.float32) / np.float32(255.0)
    signed = np.float32(2.0) * unit - np.float32(1.0)
    return np.ascontiguousarray(signed.transpose(2, 0, 1))


def picture_of(values: Float[np.ndarray, "3 height width"]) -> Image.Image:
    """Make the picture of values in [-1, 1] (a VAE's output); what lies outside is clipped."""
    unit = np.clip(values.astype(np.float32) / 2 + 0.5, 0.0, 1.0)
    return Image.fromarray((unit * 255).round().astype(np.uint8).transpose(1, 2, 0).copy())


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits: 65535 is white (Pillow's own `convert` would clip at 255)."""
    if picture.mode == "F":
        raise Unreadable("unsupported_depth", "floating point pixels: what is white is not known")
    grey = np.asarray(picture)
    if grey.min() < 0 or grey.max() > 65535:
        raise Unreadable("unsupported_depth", "integer pixels beyond 16 bits")
    grey = grey.astype(np.uint32)
    shown = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    hidden = picture.info.get("transparency")
    if isinstance(hidden, int):  # PNG: this one grey is transparent
        shown.putalpha(Image.fromarray(np.where(grey == hidden, 0, 255).astype(np.uint8)))
    return shown


def _unidentified(file: BinaryFile) -> Unreadable:
    file.seek(0)
    if file.read(4).startswith(_SIGNATURES):
        return Unreadable("unreadable", "its header is broken or cut off")
    return Unreadable("not_a_picture", "no picture of a format known here")


def _words_of(error: Exception) -> str:
    words = str(error)
    if "MAX_TEXT" in words:
        return f"it holds more than {MAX_TEXT_BYTES >> 20} MB of text beside the picture"
    if " " in words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
