"""The text encoder loads from both layouts of names, and in eight bits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import opened, picture

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.text.text_encoder import load_text_encoder


def test_both_layouts_of_the_text_encoders_names_load_alike(
    copied: Path, prompt: PromptEncoder
) -> None:
    file = copied / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    assert "visual.merger.ln_q.weight" in weights, "the layout of the released checkpoints"
    newer = {
        name.replace("model.", "model.language_model.", 1)
        if name.startswith("model.")
        else (f"model.{name}" if name.startswith("visual.") else name): value
        for name, value in weights.items()
    }
    save_file(newer, file, metadata={"format": "pt"})
    encoder = PromptEncoder.load(opened(copied), dtype=torch.float32)
    pictures = [picture(84, 56)]
    assert torch.equal(encoder.encode(pictures, [])[0], prompt.encode(pictures, [])[0])


def test_what_the_released_configuration_says_twice_is_no_warning(
    copied: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its language model's rotary settings stand outside of `text_config` as well."""
    path = copied / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    sections = [2, 3, 3]
    scaling = {"mrope_section": sections, "rope_type": "default", "type": "default"}
    repeated = {"rope_scaling": scaling, "rope_theta": 1000000.0}
    text = {**config["text_config"], **repeated}
    text.pop("rope_parameters", None)
    path.write_text(json.dumps({**config, **repeated, "text_config": text}))
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    model = load_text_encoder(opened(copied), dtype=torch.float32, device="cpu", eight_bits=False)
    assert not caplog.records
    kept = model.config.text_config.rope_parameters
    assert (kept["mrope_section"], kept["rope_theta"]) == (sections, 1000000.0)


def test_the_text_encoder_in_eight_bits_is_near_and_small(checkpoint: Checkpoint) -> None:
    exact = PromptEncoder.load(checkpoint, dtype=torch.float32)
    small = PromptEncoder.load(checkpoint, dtype=torch.float32, precision="int8-quanto")
    shown = [picture(84, 56)]
    (prefix, (tail,)), (near, (near_tail,)) = (
        encoder.encode(shown, ["make the sky red"]) for encoder in (exact, small)
    )
    for truth, coarse in ((prefix, near), (tail, near_tail)):
        assert 0 < (coarse - truth).norm() / truth.norm() < 0.05
    bytes_of = [_bytes_in(one.model.language_model.layers) for one in (exact, small)]
    assert bytes_of[1] < 0.35 * bytes_of[0]


def _bytes_in(module: Any) -> int:
    total = 0
    for tensor in module.state_dict().values():
        total += tensor.numel() * tensor.element_size()
    return total
