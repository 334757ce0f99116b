"""LoRA files: the tensor names of other tools, read and written.

A LoRA adds `up @ down * alpha / rank` to a layer. Where that alpha stands differs: diffusers
and ComfyUI take the scale of a file without alphas for 1, and diffusers refuses an alpha beside
its own names; kohya's files hold an alpha for every layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....cache.errors import Broken, WrongUse
from ....cache.files.json_file import object_in
from ..layers import BLOCK_LINEARS, MODULATION
from ..weights.file_checksum import with_checksum
from ..weights.tensor_file import as_text

Style = Literal["diffusers", "comfyui", "kohya"]

LORA_FILE = "pytorch_lora_weights.safetensors"
# What a layer's name begins with; files without any of these are read too.
PREFIXES = {"diffusers": "transformer.", "comfyui": "diffusion_model.", "kohya": "lora_unet_"}
# Where diffusers writes an alpha that its tensors do not show.
_HIDDEN_ALPHA = "lora_adapter_metadata"

_TENSOR = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|alpha)"
    r"(?:(?<!alpha)(?:\.default)?\.weight|(?<=alpha))"
)
_ROLES = {
    **dict.fromkeys(("lora_A", "lora_down", "lora.down"), "down"),
    **dict.fromkeys(("lora_B", "lora_up", "lora.up"), "up"),
}
_OUTSIDE_BLOCKS = (
    *("img_in", "txt_in", "proj_out", "norm_out.linear"),
    *(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
)


def lora_scale(*, alpha: float, rank: int) -> float:
    """Return the factor on `up @ down`: alpha / rank (Hu et al. 2021, arXiv:2106.09685)."""
    return alpha / rank


@dataclass(frozen=True)
class LowRank:
    """The change of one layer's weight: up [out, rank] @ down [rank, in] * alpha / rank."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return lora_scale(alpha=self.alpha, rank=self.rank)

    @property
    def folded_up(self) -> Tensor:
        """The matrix `up` times the scale, for readers that assume a scale of 1."""
        return self.up if self.scale == 1 else self.up.float() * self.scale

    @property
    def shape(self) -> tuple[int, int]:
        """The [out, in] of the layer's weight."""
        return self.up.shape[0], self.down.shape[1]

    def merged(self, weight: Tensor) -> Tensor:
        """Return the layer's `weight` [out, in] in float32 with the change in it."""
        return weight.float() + self.up.float() @ self.down.float() * self.scale


@dataclass(frozen=True)
class Lora:
    """A LoRA by layer, named as diffusers' transformer names its layers."""

    layers: Mapping[str, LowRank]
    metadata: Mapping[str, str]

    @property
    def ranks(self) -> set[int]:
        return {layer.rank for layer in self.layers.values()}


def lora_of(weights: Mapping[str, Tensor], *, alpha: float) -> dict[str, LowRank]:
    """Return the layers of weights named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    ready = {
        name: weight.detach().to("cpu", torch.float32).contiguous()
        for name, weight in weights.items()
    }
    end = ".lora_A.weight"
    names = [name.removesuffix(end) for name in ready if name.endswith(end)]
    return {
        name: LowRank(ready[name + end], ready[f"{name}.lora_B.weight"], alpha) for name in names
    }


# -- writing -----------------------------------------------------------------------------


def lora_file(
    weights: Mapping[str, Tensor],
    *,
    rank: int,
    alpha: float,
    about: Mapping[str, Any],
    style: Style = "diffusers",
) -> bytes:
    """Return a trained LoRA as the bytes of a file of `style`.

    The metadata give `rank` and `alpha` as whoever loads the file is to take them, and
    beside them the alpha and the scale it was trained with.
    """
    facts = {**about, "trained_alpha": alpha, "trained_scale": lora_scale(alpha=alpha, rank=rank)}
    return as_file(Lora(lora_of(weights, alpha=alpha), as_text(facts)), style)


def as_file(lora: Lora, style: Style) -> bytes:
    """Return `lora` as the bytes of a safetensors file of `style`, the same for equal LoRAs.

    diffusers and comfyui: the scale is folded into the weights, no alpha is written. kohya:
    the weights as they are, with their alphas.
    """
    tensors: dict[str, Tensor] = {}
    for layer, pair in lora.layers.items():
        tensors |= _named(layer, pair, style)
    metadata = {key: value for key, value in lora.metadata.items() if key != _HIDDEN_ALPHA}
    metadata |= {"format": "pt", "lora_format": style} | _rank_and_alpha(lora, style)
    return with_checksum(safetensors.torch.save(tensors, metadata))


def _named(layer: str, pair: LowRank, style: Style) -> dict[str, Tensor]:
    prefix = PREFIXES[style]
    if style == "kohya":
        name = prefix + layer.replace(".", "_")
        ends = {"lora_down.weight": pair.down, "lora_up.weight": pair.up}
        ends |= {"alpha": torch.tensor(pair.alpha)}
    else:
        name = prefix + layer
        ends = {"lora_A.weight": pair.down, "lora_B.weight": pair.folded_up}
    return {f"{name}.{end}": tensor.contiguous() for end, tensor in ends.items()}


def _rank_and_alpha(lora: Lora, style: Style) -> dict[str, str]:
    found = {(pair.rank, pair.alpha) for pair in lora.layers.values()}
    if len(found) != 1:
        return {}
    rank, alpha = found.pop()
    return {"rank": json.dumps(rank), "alpha": json.dumps(alpha if style == "kohya" else rank)}


# -- reading -----------------------------------------------------------------------------


def lora_path(path: Path) -> Path:
    """Return `path` if it is a file, else the LoRA file in that folder."""
    return path / LORA_FILE if path.is_dir() else path


def read_lora(path: Path) -> Lora:
    """Read a LoRA in any style: diffusers, ComfyUI, kohya, or names without a prefix.

    Args:
        path: the file, or a folder that holds a `pytorch_lora_weights.safetensors`.

    Raises:
        WrongUse: no such file, or one with tensors that are not those of a plain LoRA on
            this model's transformer; names the first of them.
    """
    path = lora_path(path)
    return lora_in(*tensors_of(path), path)


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of an adapter's file by their names, and its metadata.

    Raises:
        WrongUse: no such file, or not a safetensors file.
    """
    if not path.is_file():
        raise WrongUse(f"There is no LoRA file {path}.", "Give a .safetensors file.")
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise WrongUse(
            f"{path} is no safetensors file: {error}.", "Convert it to .safetensors first."
        ) from error


def lora_in(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Lora:
    """Return the LoRA of the `tensors` of the file `path`; raises as `read_lora` does."""
    parts = by_layer(
        tensors,
        _TENSOR,
        foreign=lambda key: WrongUse(
            f"{path}: {key} is not part of a plain LoRA on the Qwen-Image-Edit transformer.",
            "Files of diffusers, ComfyUI and kohya are read; DoRA, LoKr and text encoders are not.",
        ),
    )
    with _alphas_read(path):
        hidden = object_in(metadata.get(_HIDDEN_ALPHA, "{}").encode())
    layers = {layer: low_rank(layer, parts[layer], path, hidden=hidden) for layer in parts}
    if not layers:
        raise WrongUse(f"{path} holds no tensors.", "Give a LoRA that has some.")
    return Lora(layers, metadata)


def by_layer(
    tensors: Mapping[str, Tensor], names: re.Pattern[str], *, foreign: Callable[[str], WrongUse]
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each layer by their parts: `down`, `up`, and others as they are called.

    Args:
        names: matches the names of tensors, with the groups `layer` and `part`.
        foreign: makes the error that is raised for a tensor of another name.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = names.fullmatch(key)
        layer = layer_of(found["layer"]) if found else None
        if found is None or layer is None:
            raise foreign(key)
        parts.setdefault(layer, {})[_ROLES.get(found["part"], found["part"])] = tensor
    return parts


def layer_of(name: str) -> str | None:
    """Return the transformer's name of a layer that a file calls `name`; None for another's."""
    if name.startswith(PREFIXES["kohya"]):
        return _unflattened(name.removeprefix(PREFIXES["kohya"]))
    for prefix in (PREFIXES["diffusers"], PREFIXES["comfyui"]):
        name = name.removeprefix(prefix)
    return name if name.startswith("transformer_blocks.") or name in _OUTSIDE_BLOCKS else None


def _unflattened(flat: str) -> str | None:
    """Return `transformer_blocks_0_attn_to_q` as `transformer_blocks.0.attn.to_q`."""
    in_block = re.fullmatch(r"transformer_blocks_(\d+)_(.+)", flat)
    names = (*BLOCK_LINEARS, *MODULATION) if in_block else _OUTSIDE_BLOCKS
    wanted = in_block[2] if in_block else flat
    for name in names:
        if name.replace(".", "_") == wanted:
            return f"transformer_blocks.{in_block[1]}.{name}" if in_block else name
    return None


def low_rank(
    layer: str,
    parts: Mapping[str, Tensor],
    path: Path,
    *,
    hidden: Mapping[str, Any] = MappingProxyType({}),
) -> LowRank:
    """Return the change of `layer` that the tensors `down`, `up` and perhaps `alpha` make.

    Args:
        hidden: the alphas that diffusers writes beside the tensors.

    Raises:
        WrongUse: one is missing in the file `path`, they do not fit each other, or an alpha is
            no number.
    """
    for what in ("down", "up"):
        if what not in parts:
            raise WrongUse(
                f"{path}: {layer} has no {what} weight.", "Fix the file: save or download it again."
            )
    down, up = parts["down"], parts["up"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise WrongUse(
            f"{path}: the weights of {layer} are {shapes}.",
            "Fix the file: save or download it again.",
        )
    with _alphas_read(path):
        given = parts.get("alpha")
        alpha = _hidden_alpha(hidden, layer, rank=len(down)) if given is None else float(given)
    return LowRank(down, up, alpha)


@contextmanager
def _alphas_read(path: Path) -> Iterator[None]:
    """Raise WrongUse for whatever an alpha that is no number raises inside."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, RuntimeError, Broken) as why:
        raise WrongUse(
            f"{path}: an alpha in it cannot be read: {why}.",
            "Fix the file: save or download it again.",
        ) from why


def _hidden_alpha(options: Mapping[str, Any], layer: str, *, rank: int) -> float:
    """Return the alpha of `layer` in diffusers' own metadata; the rank where there is none."""
    alpha = float(options.get("transformer.lora_alpha", rank))
    for name, value in (options.get("transformer.alpha_pattern") or {}).items():
        if layer == name or layer.endswith("." + name):
            alpha = float(value)
    return alpha * math.sqrt(rank) if options.get("transformer.use_rslora") else alpha
