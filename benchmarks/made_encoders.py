"""Encoders of the real classes with random weights, as large as a benchmark wants them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.text.prompt_reader import PromptReader
from qedit.stages.models.vae import LatentEncoder


def made_vae(device: torch.device, **config: Any) -> LatentEncoder:
    """A VAE of this configuration; the class's own defaults are the released one's."""
    from diffusers import AutoencoderKLQwenImage

    with torch.device(device):
        vae = AutoencoderKLQwenImage(**config)
    return LatentEncoder(vae.eval().requires_grad_(False))


def made_text_encoder(
    device: torch.device,
    checkpoint: Checkpoint,
    *,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    mrope: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
) -> PromptEncoder:
    """Of another shape over a tiny checkpoint's tokens: its words are noise, its cost is not."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    written = json.loads((checkpoint.text_encoder / "config.json").read_text())
    language = {**(written.get("text_config") or written), **text}
    rope = {"type": "mrope", "mrope_section": list(mrope), "rope_type": "default"}
    language |= {"rope_parameters": rope | {"rope_theta": 1e6}, "max_position_embeddings": 128000}
    language.pop("layer_types", None)
    written |= {"text_config": language, "vision_config": {**written["vision_config"], **vision}}
    with _default(dtype), torch.device(device):
        model = Qwen2_5_VLModel(Qwen2_5_VLConfig(**written))
    return PromptEncoder(model.eval().requires_grad_(False), PromptReader.load(checkpoint))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
