"""Checks of matched pictures: they become a sample with its geometry, or reasons why not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ...config.datasets import Dataset
from ..models.templates import TURN_TOKENS
from ..samples.sample import Picture, Sample
from ..samples.schema import Rejection
from ..samples.sizes import size_of_area
from .geometry import (
    Framing,
    is_smaller,
    ratio_of,
    ratios_differ,
    same_part,
    target_area,
    target_box,
    target_size,
    whole,
)
from .picture_records import BLACK, Facts

# Reason code -> what it means; `detail` of a rejection says it for the one file.
REASONS = {
    "missing_reference": "a target without a picture of the same name in a reference folder",
    "extra_reference": "a reference without a target of the same name",
    "missing_mask": "a target without a mask of the same name",
    "extra_mask": "a mask without a target of the same name",
    "empty_mask": "a mask that is black all over, so that nothing would be learnt",
    "ambiguous": "several files of one name, with different extensions",
    "zero_bytes": "an empty file",
    "not_a_picture": "a file that holds no picture of a known format",
    "unsupported_format": "a format that is not read: convert it to PNG, JPEG or WebP",
    "unreadable": "a broken or truncated picture",
    "too_many_pixels": "a header that asks for more pixels than are ever read",
    "unsupported_depth": "floating point or 32-bit pixels",
    "too_small": "a picture below `minimum_image_size`",
    "ratio_out_of_bounds": "a ratio beyond `minimum_aspect_ratio` or `maximum_aspect_ratio`",
    "ratios_differ": "a strict reference, or a mask, of another ratio than its target",
    "missing_caption": "no caption",
    "empty_caption": "a caption of nothing but blanks",
    "caption_too_long": "a caption of more tokens than the encoder takes",
    "caption_not_utf8": "a caption file that is not UTF-8",
    "caption_too_large": "a caption of more than 1 MB",
    "caption_not_a_file": "a pipe, a socket or a device in place of a caption file",
    "picture_token_in_caption": "a caption with a token that stands for a picture",
    "name_not_utf8": "a file name that is not UTF-8",
    "permission_denied": "a file that may not be read",
    "not_readable_now": "a file that the system does not hand over",
    "broken_link": "a link that leads nowhere",
}
WARNINGS = {
    "exif_rotated": "turned upright as EXIF says",
    "alpha": "transparent parts become white",
    "sixteen_bits": "reduced to 8 bits a channel",
    "several_frames": "the first picture of several is used",
    "upscaled": "smaller than the size it is trained at",
    "target_equals_reference": "the target is the same file as a reference",
    "mask_equals_picture": "the mask is the same file as the target or a reference",
    "duplicate_target": "the same target twice",
    "turn_token_in_caption": "a caption with <|im_start|> or <|im_end|>: the turn ends there",
    "not_decoded": "only the header was read; run `qedit pair` without --quick",
}

MEANINGS = {
    **REASONS,
    **WARNINGS,
    "near_duplicate": "a target that looks like another one",
    "hardly_changed": "a target that looks like its first reference, so that little is learnt",
}

# Rounding to multiples of 32 alone enlarges a picture by a few percent; that is no warning.
UPSCALED_BY = 1.1


@dataclass(frozen=True, slots=True)
class Terms:
    """The conditions that a main dataset sets for its samples.

    Attributes:
        references: its reference datasets in their order.
        mask: the dataset of its masks.
        vae_area: of references for the VAE, in square pixels; None means the target's own.
        vl_area: of references for the vision language encoder, in square pixels.
    """

    main: Dataset
    references: tuple[Dataset, ...]
    framing: Framing
    vae_area: int | None
    vl_area: int
    mask: Dataset | None = None

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The datasets of a sample's pictures, in order: target, references, mask."""
        return (self.main, *self.references, *([self.mask] if self.mask else []))


def faults(
    name: str, paths: Sequence[str], facts: Sequence[Facts], terms: Terms
) -> list[Rejection]:
    """Return everything that is wrong with a sample's pictures.

    Args:
        paths, facts: of the target, then of each reference, then of the mask if there is one.
    """
    datasets = terms.datasets
    found = [
        Rejection(name, dataset.id, path, *fault)
        for dataset, path, known in zip(datasets, paths, facts, strict=True)
        if (fault := _fault_alone(known, dataset)) is not None
    ]
    if facts[0].reason:
        return found
    for dataset, path, known in zip(datasets[1:], paths[1:], facts[1:], strict=True):
        if not known.reason and (fault := _fault_beside(facts[0], known, dataset)) is not None:
            found.append(Rejection(name, dataset.id, path, *fault))
    return found


def sample_of(
    name: str,
    paths: Sequence[str],
    facts: Sequence[Facts],
    terms: Terms,
    *,
    captions: tuple[str, ...],
    group: str = "",
) -> Sample:
    """Make the sample of pictures without a fault, each with its geometry.

    A strict reference and a mask show the same part of the picture as the target; a loose
    reference is used whole.

    Args:
        paths, facts: as in `faults`.
    """
    seen = facts[0]
    used = target_box(seen.size, terms.framing, digest=seen.digest)
    area = terms.vae_area or target_area(used, terms.framing)
    pictures = []
    for dataset, path, known in zip(terms.datasets, paths, facts, strict=True):
        box = whole(known.size) if _is_loose(dataset) else same_part(used, seen.size, known.size)
        size, vl_size = target_size(used, terms.framing), None
        if dataset.is_reference:
            ratio = ratio_of(box)
            size, vl_size = size_of_area(area, ratio), size_of_area(terms.vl_area, ratio)
        pictures.append(Picture(dataset.id, path, known.digest, *known.size, box, size, vl_size))
    target, *references = pictures
    mask = references.pop() if terms.mask else None
    return Sample(name, terms.main.id, target, tuple(references), captions, group, mask)


def warnings_of(sample: Sample, facts: Sequence[Facts], copies: Collection[str]) -> tuple[str, ...]:
    """Return the warning codes of a sample.

    Args:
        facts: of its pictures, as in `faults`.
        copies: the digests that several targets have.
    """
    codes = {flag for known in facts for flag in known.flags}
    pictures = (sample.target, *sample.references)
    digest, *references = (picture.digest for picture in pictures)
    if any(_is_upscaled(picture) for picture in pictures):
        codes.add("upscaled")
    if digest in references:
        codes.add("target_equals_reference")
    if sample.mask and sample.mask.digest in (digest, *references):
        codes.add("mask_equals_picture")
    if digest in copies:
        codes.add("duplicate_target")
    if any(token in caption for caption in sample.captions for token in TURN_TOKENS):
        codes.add("turn_token_in_caption")
    return tuple(code for code in WARNINGS if code in codes)


def in_words(counts: Iterable[tuple[str, int]]) -> str:
    """Write counts as `3 missing_reference (a target without ...), 1 unreadable (...)`."""
    return ", ".join(f"{count} {code} ({MEANINGS[code]})" for code, count in counts)


def _fault_alone(facts: Facts, dataset: Dataset) -> tuple[str, str] | None:
    """Return what is wrong with one picture, whatever it is paired with: reason and detail."""
    if facts.reason:
        return facts.reason, facts.detail
    if dataset.is_mask and BLACK in facts.flags:
        return "empty_mask", "every pixel is black: white is where the loss counts"
    size, ratio = f"{facts.width}x{facts.height}", facts.width / facts.height
    least, most = dataset.minimum_aspect_ratio, dataset.maximum_aspect_ratio
    if not least <= ratio <= most:
        bounds = f"{_shown(least)} to {_shown(most)}"
        return "ratio_out_of_bounds", f"{size} is {_shown(ratio)}, allowed is {bounds}"
    smallest = dataset.minimum_image_size
    if smallest is not None and is_smaller(facts.size, smallest, dataset.resolution_type):
        unit = dataset.resolution_type
        return "too_small", f"{size}, minimum_image_size is {smallest:g} ({unit})"
    return None


def _fault_beside(target: Facts, other: Facts, dataset: Dataset) -> tuple[str, str] | None:
    """Return what is wrong with a picture beside its target: reason and detail."""
    tolerance = dataset.strict_ratio_tolerance
    if _is_loose(dataset) or not ratios_differ(target.size, other.size, tolerance=tolerance):
        return None
    need = "strict references need the same ratio, reference_loose does not"
    if dataset.is_mask:
        need = "a mask needs the same ratio"
    sizes = f"{other.width}x{other.height} against the target's {target.width}x{target.height}"
    return "ratios_differ", f"{sizes}; {need}"


def _is_loose(dataset: Dataset) -> bool:
    """Return whether its pictures may show something else than the target does."""
    return dataset.is_reference and dataset.conditioning_type == "reference_loose"


def _shown(ratio: float) -> str:
    """Write a ratio as `8:1`, `1.78:1` or `1:60000`."""
    more = max(ratio, 1 / ratio)
    number = f"{more:.0f}" if more >= 100 else f"{more:.3g}"
    return f"{number}:1" if ratio >= 1 else f"1:{number}"


def _is_upscaled(picture: Picture) -> bool:
    left, top, right, bottom = picture.box
    return picture.size[0] * picture.size[1] > UPSCALED_BY * (right - left) * (bottom - top)
