"""The fields of a dataset in the data file, in groups: meaning, values, and why each default is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

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
    Written,
    expanded,
    names_of,
    only,
)

LONGEST_ID_BYTES = 200  # a name has 255 at most, and some are longer than the id
LOCAL_ALONE = "other storage is not supported; copy the pictures to a local folder"


def _usable_id(value: Any) -> Any:
    text = str(value)
    if text.startswith(".") or any(mark in "/\\:" or not mark.isprintable() for mark in text):
        raise ValueError(
            f"must not begin with a dot or hold a slash, backslash or colon, unlike {value!r}: "
            "folders and samples are named by it"
        )
    if len(text.encode()) > LONGEST_ID_BYTES:
        raise ValueError(f"must not be longer than {LONGEST_ID_BYTES} bytes: it names folders")
    return value


def _file_or_names(value: Any) -> Any:
    return expanded(value) if isinstance(value, str) and value else names_of(value)


class Source(Written):
    """These fields say what a dataset is, and where its pictures are."""

    id: Annotated[Text, BeforeValidator(_usable_id)]
    """Name of the dataset. Why: folders, samples and other datasets refer to it."""
    type: Annotated[Literal["local"], BeforeValidator(only("local", LOCAL_ALONE))] = "local"
    """Kind of storage. Why: pictures are read from a local folder alone."""
    dataset_type: Literal[
        "image", "conditioning", "conditioning_image_embeds", "text_embeds", "eval"
    ] = "image"
    """What it holds: targets, references or masks (conditioning), held-out targets (eval); or it
    names a folder of image prefixes or text tails. Why: every run has targets."""
    disabled: bool = False
    """Leaves the dataset out, whatever its other fields say. Why: what is listed is used."""
    instance_data_dir: Folder | None = None
    """Folder of the pictures, with its subfolders. A renamed folder is the same data.
    Why: a dataset of pictures must name one, others have none."""


class ReferencesAndMasks(Written):
    """These fields join targets with references and masks, by the names of the files."""

    conditioning_data: Names = ()
    """Ids of the datasets of references, in the order that the model sees, and of masks.
    Why: a dataset of targets must name one, others name none."""
    conditioning_type: Literal["reference_strict", "reference_loose", "mask"] = "reference_strict"
    """What a conditioning dataset holds: references that are cropped with their target, references
    of any ratio, or masks that weigh the loss. Why: most references match their target."""
    strict_ratio_tolerance: Probability = 0.02
    """How far a strict reference or a mask may differ from its target in ratio; 0.02 is 2 %.
    Why: about as much as rounding sizes to 32 pixels changes it."""


class CaptionShuffle(Written):
    """Further captions made by shuffling the pieces of each."""

    enable: bool = False
    """Makes them. Why: the order of an instruction has a meaning."""
    count: Count = 1
    """How many are made of each caption. Unit: captions. Why: the fewest."""
    seed: CountFromZero = 0
    """Seed of the order; the same seed gives the same captions. Why: any number will do."""
    split_on: Text = "comma"
    """Separator: comma, semicolon, period, space, or any other text. Why: usual in tag lists."""
    position_start: CountFromZero = 0
    """Pieces at the beginning that keep their place. Unit: pieces. Why: all are shuffled."""
    include_original: bool = True
    """Keeps the caption as it was written too. Why: it is certain to make sense."""


class CaptionTable(Written):
    """A table of captions: Parquet, CSV or JSON lines."""

    path: File
    """The file. Why: there is no usual name."""
    filename_column: Text = "filename"
    """Column of the target's path in instance_data_dir. Why: a usual name."""
    caption_column: Names = ("caption",)
    """Columns of captions; a cell may be a list. All are alternatives. Why: a usual name."""
    fallback_caption_column: Text | None = None
    """Column that is read where the others are empty. Why: targets without caption are named."""
    identifier_includes_extension: bool = True
    """Without effect: paths are found with and without extension. Why: SimpleTuner's default."""


class Captions(Written):
    """These fields say where the captions of targets are, and what is made of them."""

    caption_strategy: (
        Literal["filename", "textfile", "instanceprompt", "parquet", "csv", "jsonl"] | None
    ) = "filename"
    """Where captions are: in the name of the file ("_" is a blank), in a .txt beside it (one a
    line), in instance_prompt, or in a table. Why: every file has a name."""
    missing_caption: Literal["reject", "empty"] = "reject"
    """A target without caption is rejected, or has an empty one. Why: mostly a mistake."""
    instance_prompt: Names = ()
    """Captions for every target, as alternatives. Why: each picture has its own."""
    prepend_instance_prompt: bool = False
    """Puts instance_prompt before each caption. Why: captions say everything themselves."""
    only_instance_prompt: bool = False
    """Takes instance_prompt in place of other captions. Why: each picture has its own."""
    disable_multiline_split: bool = False
    """Takes all lines of a text as one caption. Why: lines are alternatives; a step draws one."""
    caption_shuffle: CaptionShuffle = CaptionShuffle()
    """Further captions made by shuffling pieces. Why: each has a default of its own."""
    caption_filter_list: Annotated[
        Path | tuple[str, ...],
        BeforeValidator(_file_or_names, json_schema_input_type=str | list[Text]),
    ] = ()
    """Texts to take out of captions, or `s/pattern/replacement/`: a list, or a file, one a line.
    Why: captions stay as they are."""
    parquet: CaptionTable | None = None
    """The table of caption_strategy parquet. Why: most captions are in no table."""
    csv: CaptionTable | None = None
    """The table of caption_strategy csv, with the keys of parquet. Why: as there."""
    jsonl: CaptionTable | None = None
    """The table of caption_strategy jsonl, with the keys of parquet. Why: as there."""


class Sizes(Written):
    """These fields say which part of a target is used, at which size, and what is rejected.

    Sizes are in the unit of `resolution_type`. References have 1 megapixel.
    """

    resolution: Positive = 1024.0
    """Size of targets; each keeps its ratio. Unit: by resolution_type. Why: the model's own."""
    resolution_type: Literal["pixel_area", "area", "pixel"] = "pixel_area"
    """Unit of sizes: edge in pixels of the square of that area, megapixels of 1024 x 1024, or
    shorter edge in pixels. Why: targets of any ratio then take the same time."""
    crop: bool = False
    """Crops targets, and strict references and masks with them. Held-out pictures stay whole.
    Why: at inference the model sees whole pictures."""
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    """Ratio of the crop: 1, that of the picture, the closest of crop_aspect_buckets, or a random
    one of these. Why: pictures of one shape make full batches."""
    crop_style: Literal["center", "corner", "random"] = "center"
    """Place of the crop: in the middle, upper left, or random (drawn once for each picture).
    Why: what matters is mostly in the middle."""
    crop_aspect_buckets: tuple[Positive, ...] = ()
    """Ratios for crop_aspect closest and random. Unit: width / height.
    Why: random then has 11 usual ratios from 0.5 to 2."""
    minimum_image_size: NotNegative | None = None
    """Smaller pictures are rejected. Unit: by resolution_type. Why: `qedit pair` warns of pictures
    that are enlarged, and you decide."""
    maximum_image_size: Positive | None = None
    """With crop, a larger target is reduced to target_downsample_size, and the crop shows a part of
    it at the training size. Unit: by resolution_type. Why: a crop shows all it can."""
    target_downsample_size: Positive | None = None
    """See maximum_image_size; give both or none. Unit: by resolution_type. Why: as there."""
    minimum_aspect_ratio: Positive = 1 / 8
    """Pictures with a smaller ratio are rejected. Unit: width / height. Why: mostly a mistake."""
    maximum_aspect_ratio: Positive = 8.0
    """Pictures with a larger ratio are rejected. Unit: width / height. Why: mostly a mistake."""


class Mixture(Written):
    """These fields say how often, and when, samples of the dataset are shown."""

    repeats: CountFromZero = 0
    """Further passes over the dataset in each epoch. Unit: passes. Why: each sample once."""
    probability: Probability = 1.0
    """Chance of each pass over a sample, drawn anew in each epoch. Why: none is left out."""
    max_num_samples: Limit = None
    """Most targets that are used, chosen by their names. Unit: targets. Why: all are used."""
    start_step: CountFromZero = 0
    """First step that shows the dataset. Unit: optimizer steps. Why: from the first step."""
    end_step: Limit = None
    """Last step that shows the dataset. Unit: optimizer steps. Why: to the last step."""


class Folders(Written):
    """These fields put cached rows elsewhere than in `cache_dir` of config.json."""

    cache_dir_vae: Folder | None = None
    """Folder of its latents, or weights of masks. Why: they are in `vae/<id>` of cache_dir."""
    conditioning_image_embeds: Text | None = None
    """Id of the dataset that names the folder of the image prefixes.
    Why: they are in `conditioning_image_embeds/<id>` of cache_dir."""
    cache_dir: Folder | None = None
    """Folder that a dataset of image prefixes or text tails names.
    Why: text tails are in `text_embeds/<id>` of cache_dir."""


# pydantic takes the fields of the last base first
class Dataset(Folders, Mixture, Sizes, Captions, ReferencesAndMasks, Source):
    """A dataset of multidatabackend.json. Paths are relative to the working directory."""

    @property
    def is_main(self) -> bool:
        """True if its pictures are targets: to train on, or to evaluate with."""
        return self.dataset_type in ("image", "eval")

    @property
    def is_reference(self) -> bool:
        """True if its pictures are references of another dataset's targets."""
        return self.dataset_type == "conditioning" and self.conditioning_type != "mask"

    @property
    def is_mask(self) -> bool:
        """True if its pictures weigh the loss of another dataset's targets."""
        return self.dataset_type == "conditioning" and self.conditioning_type == "mask"

    @property
    def holds_pictures(self) -> bool:
        """True if it needs a folder of pictures."""
        return self.is_main or self.dataset_type == "conditioning"
