"""Files of DoRA and LoKr: the tensor names that their loaders read, and the list of loaders.

A DoRA is a LoRA with a norm for each output; a LoKr adds the Kronecker product of two matrices,
the second of them of low rank where that is smaller. Every scale is folded into the weights, so
that a reader who takes it for 1 is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..weights.file_checksum import with_checksum
from ..weights.tensor_file import as_text
from .lora_file import PREFIXES, Style, lora_scale

# Who reads a file of each kind, as its metadata and the model card say it.
LOADS_IN = {
    "dora": "diffusers: pipeline.load_lora_weights(file)",
    "lokr": (
        "diffusers: pipeline.transformer.load_lora_adapter(file, prefix='transformer'); "
        "ComfyUI: Load LoRA"
    ),
}
_SCALED = {"dora": (".lora_B.weight",), "lokr": (".lokr_w1", ".lokr_w1_a")}


def adapter_file(
    kind: str,
    weights: Mapping[str, Tensor],
    *,
    rank: int,
    alpha: float,
    about: Mapping[str, Any],
    style: Style = "diffusers",
) -> bytes:
    """Return a trained DoRA or LoKr as the bytes of a safetensors file, the same for equal weights.

    Args:
        style: whose prefix the names have; what follows it is one for all of them.
    """
    prefix = PREFIXES["comfyui" if style == "comfyui" else "diffusers"]
    trained_scale, tensors = lora_scale(alpha=alpha, rank=rank), {}
    for name, weight in weights.items():
        scale = trained_scale if name.endswith(_SCALED[kind]) else 1.0
        exact = weight.detach().to("cpu", torch.float32)
        tensors[prefix + name] = (exact * scale if scale != 1 else exact).contiguous()
    facts = {
        **about,
        "format": "pt",
        "lora_format": style,
        "adapter": kind,
        "loads_in": LOADS_IN[kind],
        "rank": rank,
        "alpha": rank,
        "trained_alpha": alpha,
        "trained_scale": trained_scale,
    }
    return with_checksum(safetensors.torch.save(tensors, as_text(facts)))
