"""Checkpoints as far as names and configurations go: their weights are two numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny_checkpoints import model_settings

from qedit.config.settings import Settings
from qedit.stages.models.flavours import FLAVOURS

WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_checkpoint(folder: Path, *, flavour: str = "edit-v2") -> Path:
    """Write every file that `flavour` needs."""
    known = FLAVOURS[flavour]
    write_json(folder / "model_index.json", {"_class_name": known.pipeline})
    zero = {"zero_cond_t": True} if known.zero_cond_t else {}
    write_json(folder / "transformer/config.json", {"num_layers": 2} | zero)
    write_json(folder / "vae/config.json", {"z_dim": 16})
    write_json(folder / "text_encoder/config.json", {"hidden_size": 64})
    write_json(folder / "tokenizer/tokenizer_config.json", {})
    write_json(folder / "tokenizer/tokenizer.json", {})
    write_json(folder / "processor/preprocessor_config.json", {})
    write_json(folder / "scheduler/scheduler_config.json", {})
    for part, name in WEIGHTS.items():
        save_file({"weight": np.arange(2, dtype=np.float32)}, folder / part / name)
    return folder


def settings_for(folder: Path, flavour: str = "edit-v2", **others: str) -> Settings:
    """The settings of a run on the checkpoint in `folder`."""
    return model_settings(flavour, str(folder), **others)
