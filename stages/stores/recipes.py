"""Everything that decides a latent row and an embed row, as plain JSON objects.

Not in here: the flavour's name and the sizes of pictures (the rows' keys hold the sizes),
and whatever only decides speed. No torch: `status` and a run with nothing to do read these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
        "processor": _picture_settings(checkpoint.processor) | {"backend": "pil"},
        "dtype": settings.text_encoder_dtype,
        "stored": "bfloat16",
        "positions": "mrope",
        "prefix": prefix_text(1, numbered=checkpoint.flavour.numbered_pictures),
        "closing": CLOSING,
        "dropped_tokens": DROPPED_TOKENS,
        "pictures": PICTURES,
        **({"precision": settings.text_encoder_precision, "rounding": 2} if quantised else {}),
    }


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

    transformers 5 writes it into a file for the whole processor, which it then prefers.
    """
    written = config_object(processor / "preprocessor_config.json")
    if (processor / "processor_config.json").is_file():
        written = config_object(processor / "processor_config.json").get("image_processor", written)
    return {name: written[name] for name in _PICTURE_SETTINGS if name in written}
