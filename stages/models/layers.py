"""The names of the linear layers in the transformer's blocks, and the presets made of them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from ...cache.errors import WrongUse

_IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_IMAGE_MLP = ("img_mlp.net.0.proj", "img_mlp.net.2")
_TEXT_MLP = ("txt_mlp.net.0.proj", "txt_mlp.net.2")

MODULATION = ("img_mod.1", "txt_mod.1")
BLOCK_LINEARS = (*_IMAGE_ATTENTION, *_TEXT_ATTENTION, *_IMAGE_MLP, *_TEXT_MLP)

PRESETS: dict[str, tuple[str, ...]] = {
    "attention": _IMAGE_ATTENTION,
    "joint-attention": (*_IMAGE_ATTENTION, *_TEXT_ATTENTION),
    "attention+mlp": (*_IMAGE_ATTENTION, *_IMAGE_MLP),
    "all-linear": BLOCK_LINEARS,
    "all-linear+modulation": (*BLOCK_LINEARS, *MODULATION),
}

# The text output of the last block is thrown away: what only that depends on never learns.
# Its text keys and values are seen by the picture, so they do.
IDLE_IN_LAST_BLOCK = ("attn.add_q_proj", "attn.to_add_out", *_TEXT_MLP)

# What sees nothing but the timestep: blocks' own, and those of the whole transformer.
_TIME = (
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
    "norm_out.linear",
)


def sees_only_time(layer: str) -> bool:
    """Return whether the layer's output is a function of the timestep alone."""
    return layer in _TIME or (
        layer.startswith("transformer_blocks.") and fits_any(layer, MODULATION)
    )


def layers_named(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Return the layers of the preset that `wanted` names; a list of layers as it is."""
    return PRESETS[wanted] if isinstance(wanted, str) else tuple(wanted)


def fits(layer: str, name: str) -> bool:
    """Return whether `name` is the full name of `layer` or its end, as PEFT matches names."""
    return layer == name or layer.endswith("." + name)


def fits_any(layer: str, names: Sequence[str]) -> bool:
    """Return whether any of `names` fits `layer` (see `fits`)."""
    return any(fits(layer, name) for name in names)


def trains_modulation(wanted: str | Sequence[str]) -> bool:
    """Return whether a preset or list of layers includes one that sees only the timestep."""
    names = layers_named(wanted)
    places = (*_TIME, *(f"transformer_blocks.0.{layer}" for layer in MODULATION))
    return any(map(sees_only_time, names)) or any(fits_any(layer, names) for layer in places)


def chosen_layers(linears: Sequence[str], wanted: str | Sequence[str]) -> list[str]:
    """Return those of `linears` (full names of linear layers) that `wanted` selects.

    Args:
        wanted: a name of `PRESETS`, or names as PEFT takes them: a full name, or the end of
            one ("to_q" is that layer of every block).

    Raises:
        WrongUse: a name that fits no layer which can learn.
    """
    learning, names = that_learn(linears), layers_named(wanted)
    for name in names:
        if not any(fits(layer, name) for layer in linears):
            _refuse_unknown(name)
        if not any(fits(layer, name) for layer in learning):
            raise WrongUse(
                f"`lora_target_modules`: {name} never learns. The text that leaves the last "
                "block is thrown away, and nothing else depends on that layer.",
                "Take it out, or name the layer of another block.",
            )
    return [layer for layer in learning if fits_any(layer, names)]


def that_learn(linears: Sequence[str]) -> list[str]:
    """Return `linears` without those of the last block that nothing depends on."""
    blocks = {layer.split(".")[1] for layer in linears if layer.startswith("transformer_blocks.")}
    idle = {f"transformer_blocks.{len(blocks) - 1}.{layer}" for layer in IDLE_IN_LAST_BLOCK}
    return [layer for layer in linears if layer not in idle]


def _refuse_unknown(name: str) -> None:
    near = get_close_matches(name, BLOCK_LINEARS + MODULATION, 1, 0.4)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise WrongUse(
        f"`lora_target_modules`: no layer of the transformer is called `{name}`.{hint}",
        f"Name a preset ({', '.join(PRESETS)}) or layers as diffusers calls them.",
    )
