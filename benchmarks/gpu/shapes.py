"""What is measured: the true shape of the model, a small one to try the harness with, and loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from qedit.stages.models.memory_estimate.dimensions import Dimensions
from qedit.stages.models.memory_estimate.memory import Load

FULL = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}
SMALL = FULL | {
    "num_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "axes_dims_rope": [8, 12, 12],
}
ZERO_COND_T = {"edit-v1": False, "edit-v2": False, "edit-v2+": True, "edit-v3": True}
# Text after the dropped positions: of one picture at 1024^2 (v1) or 384^2 (v2, v3), and a caption.
PICTURE_TOKENS = {"edit-v1": 1369, "edit-v2": 196, "edit-v2+": 196, "edit-v3": 196}
LABEL_TOKENS = 6  # "Picture 1: " and the marks around a picture
CAPTION_TOKENS = 40


@dataclass(frozen=True)
class Case:
    """One kind of training step: so many references at one edge, for one flavour."""

    flavour: str
    references: int
    edge: int

    @property
    def text_tokens(self) -> int:
        pictures = self.references * (PICTURE_TOKENS[self.flavour] + LABEL_TOKENS)
        return pictures + CAPTION_TOKENS

    @property
    def load(self) -> Load:
        return Load(((self.edge, self.edge),) * (1 + self.references), self.text_tokens)

    @property
    def name(self) -> str:
        return f"{self.flavour}, {self.references} ref., {self.edge}²"


def sizes_of(config: dict[str, object], flavour: str) -> Dimensions:
    return Dimensions.of_config(config, zero_cond_t=ZERO_COND_T[flavour])


def write_config(folder: Path, config: dict[str, object]) -> Path:
    """A transformer's folder with its config.json and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"_class_name": "QwenImageTransformer2DModel", **config}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def random_latents(edge: int, *, device: torch.device, seed: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(1, 16, edge // 8, edge // 8, device=device, generator=generator)
