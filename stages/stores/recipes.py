"""Everything that decides a latent row and an embed row, as plain JSON objects.

Not in here: the flavour's name and the sizes of pictures (the rows' keys hold the sizes),
and whatever only decides speed. No torch: `status` and a run with nothing to do read these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...cache.files.fingerprint import fingerprint
from ...cache.store.store import COMPRESSION
from ...config.latent_geometry import LATENT_PIXELS
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.checkpoint.config_values import config_object
from ..models.checkpoint.digests import files_digest, model_digest
from ..models.templates import CLOSING, DROPPED_TOKENS, prefix_text
from .row_kinds import RowKind

# Raised when the same inputs give other rows.
LATENTS_VERSION = 1
EMBEDS_VERSION = 1
WEIGHTS_VERSION = 1

# Who resizes pictures for the vision language encoder; the kernels differ by some levels of 255.
PILLOW, TORCHVISION = "pil", "torchvision"
FLOAT32, EXACT = "float32", "exact"  # products of float32 numbers are no TF32

TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_PICTURE_SETTINGS = (
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "max_pixels",
    "merge_size",
    "min_pixels",
    "patch_size",
    "resample",
    "rescale_factor",
    "size",
    "temporal_patch_size",
)
# How a file becomes the pixels of `images.py`; the version is raised with that file.
PICTURES: dict[str, object] = {
    "version": 1,
    "orientation": "exif",
    "background": "white",
    "resample": "lanczos",
}


@runtime_checkable
class EncoderSettings(Protocol):
    """The settings that decide in which precision rows are computed."""

    @property
    def vae_dtype(self) -> str: ...
    @property
    def text_encoder_dtype(self) -> str: ...
    @property
    def text_encoder_precision(self) -> str: ...


def latent_recipe(
    checkpoint: Checkpoint, settings: EncoderSettings, *, remember: Path
) -> dict[str, Any]:
    """Return what decides a latent row besides its key; `remember` as in `model_digest`."""
    return {
        "rows": RowKind.LATENTS.value,
        "version": LATENTS_VERSION,
        "model": model_digest(checkpoint.vae, remember=remember),
        "dtype": settings.vae_dtype,
        "stored": "bfloat16",
        "posterior": "mode",
        "pictures": PICTURES,
        FLOAT32: EXACT,
    }


def prompt_recipe(
    checkpoint: Checkpoint, settings: EncoderSettings, *, remember: Path
) -> dict[str, Any]:
    """Return what decides an image prefix or a text tail besides its key."""
    quantised = settings.text_encoder_precision != "no_change"
    return {
        "rows": "embeds",
        "version": EMBEDS_VERSION,
        "model": model_digest(checkpoint.text_encoder, remember=remember),
        "tokenizer": files_digest(checkpoint.processor, TOKENIZER_FILES),
        "processor": _picture_settings(checkpoint.processor),
        "dtype": settings.text_encoder_dtype,
        "stored": "bfloat16",
        "positions": "mrope",
        "prefix": prefix_text(1, numbered=checkpoint.flavour.numbered_pictures),
        "closing": CLOSING,
        "dropped_tokens": DROPPED_TOKENS,
        "pictures": PICTURES,
        FLOAT32: EXACT,
        **({"precision": settings.text_encoder_precision, "rounding": 2} if quantised else {}),
    }


def deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe without what leaves the rows the same: whether they are packed."""
    return {key: value for key, value in recipe.items() if key != COMPRESSION}


def earlier(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of latents or embeds that `recipe` has replaced; it is in older runs.

    Pillow resized for the vision language encoder, and on a GPU convolutions of float32 numbers
    were of TF32, as PyTorch has them by default.
    """
    old = {key: value for key, value in recipe.items() if key != FLOAT32}
    if "processor" in old:
        old["processor"] = {**old["processor"], "backend": PILLOW}
    return old


def is_earlier(recipe: Mapping[str, Any]) -> bool:
    """Return whether `recipe`, of latents or embeds, is one that `earlier` gives."""
    return FLOAT32 not in recipe


def as_begun(recipe: dict[str, Any], begun: str | None) -> dict[str, Any]:
    """Return `recipe`, or the earlier one where a run was begun with it.

    Args:
        begun: the fingerprint in its run.json; None for a new run.
    """
    old = earlier(recipe)
    return old if begun == fingerprint(deciding(old)) else recipe


def mask_recipe() -> dict[str, Any]:
    """Return what decides a row of loss weights besides its key: no model does."""
    return {
        "rows": RowKind.WEIGHTS.value,
        "version": WEIGHTS_VERSION,
        "stored": "bfloat16",
        "white": 1,
        "transparent": 0,
        "resample": "area",
        "factor": LATENT_PIXELS,
        "orientation": PICTURES["orientation"],
    }


def _picture_settings(processor: Path) -> dict[str, Any]:
    """Return how the processor cuts a picture into patches; names of classes do not count.

    transformers 5 writes it into a file for the whole processor, which it then prefers. Its class
    resizes with torchvision unless the checkpoint asks for the one that uses Pillow.
    """
    written = config_object(processor / "preprocessor_config.json")
    if (processor / "processor_config.json").is_file():
        written = config_object(processor / "processor_config.json").get("image_processor", written)
    uses_pillow = str(written.get("image_processor_type", "")).endswith("Pil")
    found = {name: written[name] for name in _PICTURE_SETTINGS if name in written}
    return found | {"backend": PILLOW if uses_pillow else TORCHVISION}
