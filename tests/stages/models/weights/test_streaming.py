"""Loaded models are complete, frozen, and in the dtype asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import opened

from qedit.cache.errors import WrongUse
from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.text.prompt_reader import PromptReader
from qedit.stages.models.transformer.denoise import load_scheduler
from qedit.stages.models.transformer.transformer import load_transformer
from qedit.stages.models.vae import LatentEncoder


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_missing_weights_are_refused_and_never_made_up(part: str, copied: Path) -> None:
    (file,) = (copied / part).glob("*.safetensors")
    weights = load_file(file)
    gone = sorted(name for name in weights if name.endswith("weight") and "lm_head" not in name)[3]
    save_file({k: v for k, v in weights.items() if k != gone}, file, metadata={"format": "pt"})
    load: dict[str, Any] = {
        "text_encoder": PromptEncoder.load,
        "vae": LatentEncoder.load,
        "transformer": lambda found: load_transformer(found, dtype=torch.float32, device="cpu"),
    }
    with pytest.raises(WrongUse, match="1 tensors are missing"):
        load[part](opened(copied))


def test_models_are_loaded_frozen_and_in_the_dtype_asked_for(checkpoint: Checkpoint) -> None:
    loaded = [
        LatentEncoder.load(checkpoint, dtype=torch.bfloat16).vae,
        PromptEncoder.load(checkpoint, dtype=torch.bfloat16).model,
        load_transformer(checkpoint, dtype=torch.bfloat16, device="cpu"),
    ]
    for model in loaded:
        assert not model.training
        for parameter in model.parameters():
            assert parameter.dtype == torch.bfloat16
            assert not parameter.requires_grad


@pytest.mark.parametrize(
    ("part", "file", "key", "value"),
    [
        ("vae", "config.json", "temperal_downsample", [False]),
        ("text_encoder", "config.json", "dtype", [[]]),
        ("processor", "preprocessor_config.json", "size", {"a": 1}),
        ("scheduler", "scheduler_config.json", "time_shift_type", ""),
    ],
)
def test_what_a_library_makes_of_an_odd_configuration_is_no_traceback(
    part: str, file: str, key: str, value: object, copied: Path
) -> None:
    path = copied / part / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    load: dict[str, Any] = {
        "text_encoder": PromptEncoder.load,
        "processor": PromptReader.load,
        "vae": LatentEncoder.load,
        "scheduler": lambda found: load_scheduler(found.scheduler),
    }
    with pytest.raises(WrongUse, match=f"{copied / part} cannot be loaded as "):
        load[part](opened(copied))
