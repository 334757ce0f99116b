"""Pictures for the vision language encoder are resized as torchvision, or Pillow, does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from real_files import real_file
from safetensors.torch import load_file
from tiny_checkpoints import picture

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt_reader import PromptReader


def shown(reader: PromptReader, pictures: list[Image.Image]) -> torch.Tensor:
    """The patches of pictures, as levels of 0 to 255."""
    patches = reader.read(pictures, []).patches
    processor: Any = reader._image_processor
    mean, std = (torch.tensor(values)[None, :, None] for values in _of(processor))
    channels = patches.reshape(len(patches), 3, -1)
    return (channels * std + mean) * 255


def _of(processor: Any) -> tuple[Any, Any]:
    return processor.image_mean, processor.image_std


def test_pictures_are_what_the_real_processor_makes_of_them(checkpoint: Checkpoint) -> None:
    """Twelve pictures that transformers resized with torchvision, at the real model's bounds."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    golden = load_file(real_file("vl-resize-golden.safetensors"))
    real = Qwen2VLImageProcessorPil.from_pretrained(str(real_file("qwen2.5-vl-7b")))
    tokenizer = PromptReader.load(checkpoint)._tokenizer
    reader = PromptReader(tokenizer, real, numbered_pictures=True)
    given = [name for name in golden if name.startswith("in_")]
    assert len(given) == 12
    for name in given:
        before = golden[name].numpy()
        values = before if before.shape[-1] == 3 else before.transpose(1, 2, 0)
        after = golden[name.replace("in_", "out_")]
        expected = after if after.shape[0] == 3 else after.permute(2, 0, 1)
        resized = reader._resized(Image.fromarray(np.ascontiguousarray(values)))
        assert torch.equal(resized, expected), name


@pytest.mark.parametrize("size", [(84, 56), (61, 47), (200, 40)])
def test_the_two_ways_to_resize_differ_by_little(
    size: tuple[int, int], checkpoint: Checkpoint
) -> None:
    ways = (PromptReader.load(checkpoint, with_pillow=with_pillow) for with_pillow in (False, True))
    torchvision, pillow = (shown(reader, [picture(*size)]) for reader in ways)
    assert torch.allclose(torchvision, torchvision.round(), atol=1e-3), "whole levels"
    is_resized = any(edge % 28 for edge in size)
    difference = (torchvision - pillow).abs().max()
    assert (difference > 0.5) == is_resized
    assert difference < 24
