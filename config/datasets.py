"""The fields of one entry of multidatabackend.json, their defaults and what may be written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .value_types import (
    Count,
    CountFromZero,
    File,
    Folder,
    Limit,
    Names,
    NotNegative,
    Positive,
    Probability,
    Text,
    Whole,
    Written,
    names_of,
    only,
)

# What qedit can read pictures from, and where other trainers also can.
LOCAL_ALONE = "other storage is not supported; copy the pictures to a local folder"


def _usable_id(value: Any) -> Any:
    text = str(value)
    if text.startswith(".") or any(mark in "/\\:" or not mark.isprintable() for mark in text):
        raise ValueError(
            f"must not begin with a dot or hold a slash, backslash or colon, unlike {value!r}: "
            "folders and samples are named by it"
        )
    return value


def _file_or_names(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) and value else names_of(value)


class CaptionShuffle(Written):
    """Further captions made by shuffling the pieces of each.

    Attributes:
        count: how many shuffled captions are made of each.
        seed: the same seed gives the same captions.
        split_on: "comma", "semicolon", "period", "space", or the separator itself.
        position_start: so many pieces at the beginning keep their place.
        include_original: whether the caption as written is kept as well.
    """

    enable: bool = False
    count: Count = 1
    seed: Annotated[Whole, Field(ge=0)] = 0
    split_on: Text = "comma"
    position_start: CountFromZero = 0
    include_original: bool = True


class CaptionTable(Written):
    """A table of captions: Parquet, CSV or JSON lines.

    Attributes:
        path: of the file, relative to the working directory.
        filename_column: holds the target's path relative to `instance_data_dir`.
        caption_column: one or more columns; a cell may be a list. All are alternatives.
        fallback_caption_column: read where the caption columns are empty.
        identifier_includes_extension: whether the paths in `filename_column` have extensions.
    """

    path: File
    filename_column: Text = "filename"
    caption_column: Names = ("caption",)
    fallback_caption_column: Text | None = None
    identifier_includes_extension: bool = True


class Dataset(Written):
    """One entry of multidatabackend.json, frozen. Paths are relative to the working directory."""

    id: Annotated[Text, BeforeValidator(_usable_id)]
    type: Annotated[Literal["local"], BeforeValidator(only("local", LOCAL_ALONE))] = "local"
    dataset_type: Literal[
        "image", "conditioning", "conditioning_image_embeds", "text_embeds", "eval"
    ] = "image"
    disabled: bool = False
    instance_data_dir: Folder | None = None

    conditioning_data: Names = ()
    conditioning_type: Literal["reference_strict", "reference_loose", "mask"] = "reference_strict"
    conditioning_image_embeds: Text | None = None
    cache_dir_vae: Folder | None = None
    cache_dir: Folder | None = None

    caption_strategy: (
        Literal["filename", "textfile", "instanceprompt", "parquet", "csv", "jsonl"] | None
    ) = "filename"
    missing_caption: Literal["reject", "empty"] = "reject"
    instance_prompt: Names = ()
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    disable_multiline_split: bool = False
    caption_shuffle: CaptionShuffle = CaptionShuffle()
    # A file with one entry a line, or the entries themselves.
    caption_filter_list: Annotated[Path | tuple[str, ...], BeforeValidator(_file_or_names)] = ()
    parquet: CaptionTable | None = None
    csv: CaptionTable | None = None
    jsonl: CaptionTable | None = None

    # Pixels of an edge, or megapixels where `resolution_type` is `area`; the same unit holds
    # for minimum_image_size, maximum_image_size and target_downsample_size.
    resolution: Positive = 1024.0
    resolution_type: Literal["pixel_area", "area", "pixel"] = "pixel_area"
    crop: bool = False
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    crop_style: Literal["center", "corner", "random"] = "center"
    crop_aspect_buckets: tuple[Positive, ...] = ()
    minimum_image_size: NotNegative | None = None
    maximum_image_size: Positive | None = None
    target_downsample_size: Positive | None = None
    minimum_aspect_ratio: Positive = 1 / 8
    maximum_aspect_ratio: Positive = 8.0
    strict_ratio_tolerance: Probability = 0.02

    repeats: CountFromZero = 0
    probability: Probability = 1.0
    max_num_samples: Limit = None
    start_step: CountFromZero = 0
    end_step: Limit = None

    @property
    def is_main(self) -> bool:
        """Whether its pictures are targets: to train on, or to evaluate with."""
        return self.dataset_type in ("image", "eval")

    @property
    def is_reference(self) -> bool:
        """Whether its pictures are references of another dataset's targets."""
        return self.dataset_type == "conditioning" and self.conditioning_type != "mask"

    @property
    def is_mask(self) -> bool:
        """Whether its pictures weigh the loss of another dataset's targets."""
        return self.dataset_type == "conditioning" and self.conditioning_type == "mask"

    @property
    def holds_pictures(self) -> bool:
        """Whether it needs a folder of pictures."""
        return self.is_main or self.dataset_type == "conditioning"
