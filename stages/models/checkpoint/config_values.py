"""The values that a model's configuration files may have: those of any real model, and no others.

Sizes decide how much is allocated, before anything notices that they fit no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....cache.errors import QeditError, WrongUse
from .model_files import fetch_again, json_object


@dataclass(frozen=True)
class Allowed:
    """The values that a key may have.

    Attributes:
        kind: what JSON calls them: whole number, number, true or false, object.
        least, most: of numbers.
        lengths: the shortest and the longest list of such values; None where it is no list.
        is_optional: whether null is allowed.
    """

    kind: str
    least: int | float = 0
    most: int | float = 0
    lengths: tuple[int, int] | None = None
    is_optional: bool = False

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.is_optional
        if self.lengths is None:
            return self._accepts_one(value)
        shortest, longest = self.lengths
        return (
            isinstance(value, list)
            and shortest <= len(value) <= longest
            and all(map(self._accepts_one, value))
        )

    def _accepts_one(self, value: Any) -> bool:
        if self.kind == "object":
            return isinstance(value, dict)
        if self.kind == "true or false":
            return isinstance(value, bool)
        kinds = (int,) if self.kind == "whole number" else (int, float)
        return type(value) in kinds and self.least <= value <= self.most

    def __str__(self) -> str:
        words = self.kind
        if self.most:
            words += f" from {self.least:g} to {self.most:.12g}"
        if self.lengths:
            shortest, longest = self.lengths
            many = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
            return f"a list of {many} values, each {words}"
        return words if self.kind == "true or false" else f"a{'n' * (words[0] == 'o')} {words}"


_WHOLE, _NUMBER = Allowed("whole number", 1), Allowed("number", -1000, 1000)
_POSITIVE = Allowed("number", 1e-12, 1000)
_COUNT, _WIDTH, _LENGTH = (replace(_WHOLE, most=most) for most in (1000, 65536, 10_000_000))
_PIXELS = replace(_WHOLE, most=1 << 40, is_optional=True)
_TRUTH, _OBJECT = Allowed("true or false"), Allowed("object", is_optional=True)
_ALLOWED: dict[str, Allowed] = {
    **dict.fromkeys(("num_layers", "num_hidden_layers", "depth", "num_res_blocks"), _COUNT),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), _COUNT),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), _COUNT),
    **dict.fromkeys(("attention_head_dim", "spatial_merge_size", "z_dim"), _COUNT),
    **dict.fromkeys(("in_channels", "joint_attention_dim", "base_dim", "window_size"), _WIDTH),
    **dict.fromkeys(("hidden_size", "intermediate_size", "out_hidden_size"), _WIDTH),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "num_train_timesteps"), _LENGTH),
    **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), _LENGTH),
    **dict.fromkeys(("min_pixels", "max_pixels", "shortest_edge", "longest_edge"), _PIXELS),
    **dict.fromkeys(("base_shift", "max_shift"), _NUMBER),
    **dict.fromkeys(("shift", "rescale_factor", "rms_norm_eps"), _POSITIVE),
    **dict.fromkeys(("zero_cond_t", "guidance_embeds", "use_dynamic_shifting"), _TRUTH),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), _TRUTH),
    **dict.fromkeys(("tie_word_embeddings", "use_cache", "use_sliding_window"), _TRUTH),
    **dict.fromkeys(("image_token_id", "video_token_id"), replace(_LENGTH, least=0)),
    **dict.fromkeys(("vision_start_token_id", "vision_end_token_id"), replace(_LENGTH, least=0)),
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), _TRUTH),
    **dict.fromkeys(("text_config", "vision_config", "size", "image_processor"), _OBJECT),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _OBJECT),
    **dict.fromkeys(("axes_dims_rope", "mrope_section"), replace(_COUNT, lengths=(3, 3))),
    **dict.fromkeys(("latents_mean",), replace(_NUMBER, lengths=(1, 1000))),
    **dict.fromkeys(("latents_std",), replace(_POSITIVE, lengths=(1, 1000))),
    "out_channels": replace(_WIDTH, is_optional=True),
    "shift_terminal": Allowed("number", 0, 1, is_optional=True),
    "rope_theta": Allowed("number", 1, 1e12),
    "resample": Allowed("whole number", 0, 5),
    "dropout": Allowed("number", 0, 1),
    "attn_scales": replace(_NUMBER, lengths=(0, 8)),
    "image_mean": replace(_NUMBER, lengths=(3, 3)),
    "image_std": replace(_POSITIVE, lengths=(3, 3)),
    "dim_mult": replace(_COUNT, lengths=(2, 8)),
    "temperal_downsample": replace(_TRUTH, lengths=(1, 7)),
    "fullatt_block_indexes": Allowed("whole number", 0, 1000, lengths=(0, 1000)),
}


def config_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a configuration file of a model, once its values are looked at.

    Raises:
        NotComplete: there is no such file, or something else in it.
        WrongUse: a value that no model can have; says which key, and what is allowed.
    """
    config = json_object(path)
    for key, value, allowed in _refused(config):
        raise WrongUse(f"{path}: {key} is {value!r:.60}, but must be {allowed}.", fetch_again(path))
    return config


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


def _refused(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, object]]:
    """Yield each value that is not allowed: its key, itself, and what is allowed."""
    yield from _values_refused(config)
    z_dim, axes = config.get("z_dim"), config.get("axes_dims_rope")
    for key in ("latents_mean", "latents_std"):
        if z_dim is not None and key in config and len(config[key]) != z_dim:
            yield key, config[key], f"as long as z_dim says, {z_dim}"
    if axes and sum(axes) != config.get("attention_head_dim", sum(axes)):
        yield "axes_dims_rope", axes, f"{config['attention_head_dim']} together"
    stages = config.get("dim_mult")
    if stages and len(config.get("temperal_downsample", stages[1:])) != len(stages) - 1:
        yield "temperal_downsample", config["temperal_downsample"], "one shorter than dim_mult"


def _values_refused(value: Any) -> Iterator[tuple[str, Any, object]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in ((str(key), inner) for key, inner in items):
        allowed = _ALLOWED.get(key)
        if allowed and not allowed.accepts(inner):
            yield key, inner, allowed
        elif isinstance(inner, float) and not math.isfinite(inner):
            yield key, inner, "a number"
        elif isinstance(inner, dict | list):
            yield from _values_refused(inner)


def config_in(folder: Path) -> dict[str, Any]:
    """Return the config.json of the model in `folder`; raises as `config_object` does."""
    return config_object(folder / "config.json")
