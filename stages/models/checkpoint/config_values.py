"""The values that a model's configuration files may have: those of any real model, and no others.

Sizes decide how much is allocated, before anything notices that they fit no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ....cache.errors import QeditError, WrongUse
from ....config.mistakes import WORDS
from .model_files import fetch_again, json_object


def _whole(most: int, *, least: int = 1) -> Any:
    return Annotated[int, Field(ge=least, le=most, strict=True)]


def _number(most: float, *, least: float = 0.0, above: float = -math.inf) -> Any:
    return Annotated[float, Field(ge=least, le=most, gt=above, strict=True)]


def _list(kind: Any, shortest: int, longest: int) -> Any:
    return Annotated[list[kind], Field(min_length=shortest, max_length=longest)]


_TRUTH = Annotated[bool, Field(strict=True)]
_KINDS: tuple[tuple[Any, str], ...] = (
    (_whole(1000), "num_layers num_hidden_layers depth num_res_blocks num_attention_heads"),
    (_whole(1000), "num_key_value_heads num_heads attention_head_dim z_dim patch_size"),
    (_whole(1000), "temporal_patch_size merge_size spatial_merge_size input_channels"),
    (_whole(1 << 16), "in_channels joint_attention_dim base_dim window_size hidden_size"),
    (_whole(1 << 16), "intermediate_size out_hidden_size"),
    (_whole(1 << 16) | None, "out_channels"),
    (_whole(10**7), "vocab_size max_position_embeddings num_train_timesteps"),
    (_whole(10**7), "base_image_seq_len max_image_seq_len"),
    (_whole(10**7, least=0), "image_token_id video_token_id vision_start_token_id"),
    (_whole(1 << 40) | None, "min_pixels max_pixels shortest_edge longest_edge"),
    (_whole(5, least=0), "resample"),
    (_number(1e3, above=0.0), "shift rescale_factor rms_norm_eps"),
    (_number(1e3, least=-1e3), "base_shift max_shift"),
    (_number(1.0) | None, "shift_terminal dropout"),
    (_number(1e12, least=1.0), "rope_theta"),
    (_TRUTH, "zero_cond_t guidance_embeds use_dynamic_shifting use_karras_sigmas"),
    (_TRUTH, "use_exponential_sigmas use_beta_sigmas tie_word_embeddings use_cache"),
    (_TRUTH, "do_resize do_rescale do_normalize do_convert_rgb use_sliding_window"),
    (dict[str, Any] | None, "text_config vision_config size image_processor"),
    (dict[str, Any] | None, "rope_scaling rope_parameters"),
    (_list(_whole(1000), 3, 3), "axes_dims_rope mrope_section"),
    (_list(_whole(1000), 2, 8), "dim_mult"),
    (_list(_whole(1000, least=0), 0, 1000), "fullatt_block_indexes"),
    (_list(_TRUTH, 1, 7), "temperal_downsample"),
    (_list(_number(1e3, least=-1e3), 0, 1000), "latents_mean attn_scales"),
    (_list(_number(1e3, above=0.0), 1, 1000), "latents_std"),
    (_list(_number(1e3), 3, 3), "image_mean"),
    (_list(_number(1e3, above=0.0), 3, 3), "image_std"),
)
_ADAPTERS = [(TypeAdapter(kind), keys) for kind, keys in _KINDS]
_ALLOWED = {key: adapter for adapter, keys in _ADAPTERS for key in keys.split()}


def config_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a configuration file of a model, once its values are looked at.

    Raises:
        NotComplete: there is no such file, or something else in it.
        WrongUse: a value that no model can have; says which key, and what is allowed.
    """
    config = json_object(path)
    refused = [*_refused(config)] or [*_contradictions(config)]
    for key, value, why in refused:
        raise WrongUse(f"{path}: {key} is {value!r:.60}, but {why}.", fetch_again(path))
    return config


def config_in(folder: Path) -> dict[str, Any]:
    """Return the config.json of the model in `folder`; raises as `config_object` does."""
    return config_object(folder / "config.json")


def _refused(value: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield each value that is not allowed: its key, itself, and what is allowed."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        try:
            if key in _ALLOWED:
                _ALLOWED[key].validate_python(inner)
        except ValidationError as error:
            (found, *_) = error.errors()
            yield key, inner, WORDS[found["type"]](found.get("ctx", {}))
        if isinstance(inner, float) and not math.isfinite(inner):
            yield str(key), inner, "must be a finite number"
        elif isinstance(inner, dict | list):
            yield from _refused(inner)


def _contradictions(config: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield each value that is not allowed beside another one."""
    for key in {"latents_mean", "latents_std"} & config.keys():
        if len(config[key]) != config.get("z_dim", len(config[key])):
            yield key, config[key], f"must have z_dim values, {config['z_dim']}"
    axes = config.get("axes_dims_rope", ())
    if axes and sum(axes) != config.get("attention_head_dim", sum(axes)):
        yield "axes_dims_rope", axes, "must be attention_head_dim in sum"


@contextmanager
def as_wrong_use(folder: Path, kind: str) -> Iterator[None]:
    """Raise WrongUse for whatever libraries raise in the block, which reads files in `folder`.

    Args:
        kind: what is made of the files, for the message.
    """
    try:
        yield
    except QeditError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise WrongUse(
            f"{folder} cannot be loaded as {kind}: {why}",
            "Check `pretrained_model_name_or_path` and the options that override its parts.",
        ) from error
