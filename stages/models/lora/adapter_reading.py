"""Adapters of any kind read from their files, and what each makes of a layer's weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ....cache.errors import WrongUse
from .lora_file import LowRank, by_layer, lora_in, lora_path, low_rank, tensors_of

Kind = Literal["lora", "dora", "lokr"]

# ComfyUI adds it to the norms of a base's rows before it divides by them.
_NORM_EPSILON = torch.finfo(torch.float32).eps
NORMS = "lora_magnitude_vector.weight"  # the end of the name of a DoRA's norms
_PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lokr_w[12](?:_[ab])?|alpha)"
    r"(?:\.weight)?"
)


@dataclass(frozen=True)
class Dora:
    """A LoRA whose rows are brought to the learnt `norms` [out] (Liu et al., arXiv:2402.09353)."""

    lora: LowRank
    norms: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors by the ends of their names, as qedit and diffusers name them."""
        return {
            "lora_A.weight": self.lora.down,
            "lora_B.weight": self.lora.folded_up,
            NORMS: self.norms,
        }

    @property
    def shape(self) -> tuple[int, int]:
        return self.lora.shape

    def merged(self, weight: Tensor) -> Tensor:
        changed = self.lora.merged(weight)
        return changed * _quotient(self.norms, _row_norms(changed))[:, None]

    def comfyui_scale(self, weight: Tensor) -> Tensor:
        """Return the `dora_scale` [out, 1] that makes ComfyUI compute `merged`.

        ComfyUI computes dora_scale / (||W|| + epsilon) * (W + BA), by the norms of the base's own
        rows, where PEFT, which trained it, divides by those of W + BA.
        """
        own = _row_norms(weight.float()) + _NORM_EPSILON
        return _quotient(self.norms * own, _row_norms(self.lora.merged(weight)))[:, None]


@dataclass(frozen=True)
class Kronecker:
    """The LoKr of a layer: the Kronecker product of two matrices, each whole or of low rank.

    Attributes:
        parts: by the ends of the tensors' names: `lokr_w1`, or `lokr_w1_a` and `lokr_w1_b`; the
            same of `lokr_w2`; perhaps `alpha`.
    """

    parts: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        one, two = self._factor("lokr_w1"), self._factor("lokr_w2")
        return one.shape[0] * two.shape[0], one.shape[1] * two.shape[1]

    def merged(self, weight: Tensor) -> Tensor:
        return weight.float() + self._scale * torch.kron(
            self._factor("lokr_w1"), self._factor("lokr_w2")
        )

    def _factor(self, name: str) -> Tensor:
        if name in self.parts:
            return self.parts[name].float()
        return self.parts[f"{name}_a"].float() @ self.parts[f"{name}_b"].float()

    @property
    def _scale(self) -> float:
        """alpha / rank where a matrix is of low rank, else 1, as LyCORIS and ComfyUI take it."""
        low = [name for name in ("lokr_w1_b", "lokr_w2_b") if name in self.parts]
        ranks = [self.parts[name].shape[0] for name in low]
        return float(self.parts["alpha"]) / ranks[0] if ranks and "alpha" in self.parts else 1.0


@dataclass(frozen=True)
class Adapter:
    """An adapter by layer, named as diffusers' transformer names its layers."""

    layers: Mapping[str, LowRank | Dora | Kronecker]
    metadata: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """The kind of all its layers, as `lora_type` calls it."""
        return _KINDS[type(next(iter(self.layers.values())))]


def read_adapter(path: Path) -> Adapter:
    """Read a LoRA in any style that `read_lora` reads, or a DoRA or LoKr as qedit writes it.

    Args:
        path: the file, or a folder that holds a `pytorch_lora_weights.safetensors`.

    Raises:
        WrongUse: no such file, or one with tensors of something else; names the first of them.
    """
    path = lora_path(path)
    tensors, metadata = tensors_of(path)
    kind = _kind_of(tensors)
    if kind == "lora":
        return Adapter(lora_in(tensors, metadata, path).layers, metadata)
    parts = by_layer(
        tensors,
        _PART,
        foreign=lambda key: WrongUse(
            f"{path}: {key} is not part of a {kind} on the Qwen-Image-Edit transformer.",
            "Give the file that training wrote.",
        ),
    )
    read = _dora if kind == "dora" else _kronecker
    return Adapter({layer: read(layer, parts[layer], path) for layer in parts}, metadata)


_KINDS: Mapping[type, Kind] = {LowRank: "lora", Dora: "dora", Kronecker: "lokr"}


def _kind_of(names: Mapping[str, Tensor]) -> Kind:
    if any(".lokr_w" in name for name in names):
        return "lokr"
    ends = (".lora_magnitude_vector", f".{NORMS}", ".dora_scale")
    return "dora" if any(name.endswith(ends) for name in names) else "lora"


def _dora(layer: str, parts: Mapping[str, Tensor], path: Path) -> Dora:
    lora, norms = low_rank(layer, parts, path), parts.get("lora_magnitude_vector")
    if norms is None or norms.numel() != lora.shape[0]:
        raise _unfit(layer, path)
    return Dora(lora, norms.float().flatten())


def _kronecker(layer: str, parts: Mapping[str, Tensor], path: Path) -> Kronecker:
    for name in ("lokr_w1", "lokr_w2"):
        names = [name] if name in parts else [f"{name}_a", f"{name}_b"]
        shapes = [parts[name].shape for name in names if name in parts]
        is_product = len(shapes) < 2 or shapes[0][-1:] == shapes[1][:1]
        if len(shapes) < len(names) or any(len(shape) != 2 for shape in shapes) or not is_product:
            raise _unfit(layer, path)
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise _unfit(layer, path)
    return Kronecker(parts)


def _unfit(layer: str, path: Path) -> WrongUse:
    return WrongUse(
        f"{path}: the weights of {layer} are incomplete or do not fit each other.",
        "Fix the file: save or download it again.",
    )


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """Divide; a row of zeros stays one, whatever it is multiplied by."""
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0.0)
