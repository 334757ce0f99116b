"""The geometry of a sample: which part of a picture is used, and what size it becomes.

Every function here is pure: a size or a box follows from one picture and the settings, never
from the other pictures or their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

from ..samples.sizes import Amount, Size, area_of, size_of_area, size_of_edge

Box = tuple[float, float, float, float]

# What `crop_aspect: closest` and `random` choose from when the dataset names no ratios.
CROP_RATIOS = (0.5, 0.5625, 2 / 3, 0.75, 0.8, 1.0, 1.25, 4 / 3, 1.5, 16 / 9, 2.0)


@dataclass(frozen=True, slots=True)
class Framing:
    """The crop and size settings for the targets of a dataset.

    Attributes:
        resolution: the edge in pixels of the square of that area (`pixel_area`), megapixels of
            1024 x 1024 (`area`), or the shorter edge in pixels (`pixel`).
        maximum_image_size, target_downsample_size: in the same unit.
    """

    resolution: Amount
    resolution_type: Literal["pixel_area", "area", "pixel"] = "pixel_area"
    crop: bool = False
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    crop_style: Literal["center", "corner", "random"] = "center"
    crop_ratios: tuple[float, ...] = ()
    maximum_image_size: Amount | None = None
    target_downsample_size: Amount | None = None
    seed: int = 0


def whole(size: Size) -> Box:
    """Return the box that cuts nothing away."""
    return (0.0, 0.0, float(size[0]), float(size[1]))


def ratio_of(box: Box) -> float:
    """Return the width of a box divided by its height."""
    return (box[2] - box[0]) / (box[3] - box[1])


def is_smaller(picture: Size, least: Amount, unit: str) -> bool:
    """Return whether a picture falls short of `least`, given in the unit of `resolution_type`."""
    return _scale_to(picture, least, unit) > 1


def target_size(box: Box, framing: Framing) -> Size:
    """Return the (width, height) in pixels that the used part of a target becomes."""
    if framing.resolution_type == "pixel":
        return size_of_edge(framing.resolution, ratio_of(box))
    return size_of_area(area_of(framing.resolution, framing.resolution_type), ratio_of(box))


def target_area(box: Box, framing: Framing) -> float:
    """Return the square pixels that `match_target_res` gives to the references of this target."""
    if framing.resolution_type == "pixel":
        width, height = target_size(box, framing)
        return float(width * height)
    return area_of(framing.resolution, framing.resolution_type)


def target_box(picture: Size, framing: Framing, *, digest: str) -> Box:
    """Return the part of an upright target that is used, in its own (fractional) pixels.

    Without `crop` it is all of the picture, with `crop` the largest box of the wanted ratio. Where
    both `maximum_image_size` and `target_downsample_size` are given, a picture larger than the
    first is taken as if reduced to the second, and the box is a window of the training size in it:
    part of the picture at that scale.

    Args:
        picture: (width, height) in pixels.
        digest: of the file's content; it seeds random crops, so a renamed file keeps its crop.
    """
    if not framing.crop:
        return whole(picture)
    ratio = _crop_ratio(picture, framing, digest)
    width, height = _largest_within(picture, ratio)
    most, reduced = framing.maximum_image_size, framing.target_downsample_size
    if most is not None and reduced is not None:
        width, height = _window(picture, (width, height), framing, most=most, reduced=reduced)
    spare_width, spare_height = picture[0] - width, picture[1] - height
    across, down = _placement(framing, digest)
    left, top = spare_width * across, spare_height * down
    # a sum may overshoot the edge by its last bit, which a resize would refuse
    return (left, top, min(left + width, float(picture[0])), min(top + height, float(picture[1])))


def same_part(box: Box, target: Size, reference: Size) -> Box:
    """Return the target's `box` in the pixels of a reference that shows the same as the target.

    Args:
        target, reference: their (width, height) in pixels.
    """
    if box == whole(target):
        return whole(reference)
    across, down = reference[0] / target[0], reference[1] / target[1]
    right, bottom = float(reference[0]), float(reference[1])
    return (
        box[0] * across,
        box[1] * down,
        min(box[2] * across, right),
        min(box[3] * down, bottom),
    )


def ratios_differ(target: Size, reference: Size, *, tolerance: float) -> bool:
    """Return whether two pictures' ratios differ by more than `tolerance` (0.02 is 2 %)."""
    one, other = target[0] * reference[1], reference[0] * target[1]
    return max(one, other) > (1 + tolerance) * min(one, other)


def _crop_ratio(picture: Size, framing: Framing, digest: str) -> float:
    own = picture[0] / picture[1]
    offered: Sequence[float] = sorted(framing.crop_ratios or CROP_RATIOS)
    match framing.crop_aspect:
        case "square":
            return 1.0
        case "preserve":
            return own
        case "closest":
            return min(offered, key=lambda ratio: abs(log(ratio / own)))
        case "random":
            drawn = _drawn(framing.seed, digest, "aspect")
            return offered[int(drawn * len(offered))]


def _largest_within(picture: Size, ratio: float) -> tuple[float, float]:
    """Return the largest width and height of `ratio` that a picture holds."""
    width, height = picture
    if ratio == width / height:
        return float(width), float(height)
    if width >= height * ratio:
        return height * ratio, float(height)
    return float(width), width / ratio


def _window(
    picture: Size, largest: tuple[float, float], framing: Framing, *, most: Amount, reduced: Amount
) -> tuple[float, float]:
    """Return the width and height, in the picture's pixels, of a window of the training size.

    Args:
        largest: width and height of the largest box of the wanted ratio.
        most, reduced: a picture larger than `most` is taken as if reduced to `reduced`.
    """
    scale = 1.0
    if _scale_to(picture, most, framing.resolution_type) < 1:
        scale = min(1.0, _scale_to(picture, reduced, framing.resolution_type))
    width, _ = target_size((0.0, 0.0, *largest), framing)
    share = min(1.0, width / (largest[0] * scale))
    return largest[0] * share, largest[1] * share


def _scale_to(picture: Size, amount: Amount, unit: str) -> float:
    """Return the factor by which a picture is to be scaled to measure `amount`."""
    if unit == "pixel":
        return amount / min(picture)
    return sqrt(area_of(amount, unit) / (picture[0] * picture[1]))


def _placement(framing: Framing, digest: str) -> tuple[float, float]:
    """Return where the box lies in the spare room: 0 is left or top, 1 is right or bottom."""
    match framing.crop_style:
        case "center":
            return 0.5, 0.5
        case "corner":
            return 0.0, 0.0
        case "random":
            return _drawn(framing.seed, digest, "left"), _drawn(framing.seed, digest, "top")


def _drawn(seed: int, digest: str, what: str) -> float:
    """Return a number in [0, 1) that belongs to this seed, picture content and purpose."""
    drawn = hashlib.blake2b(f"{seed} {digest} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") / 2**64
