"""The vision language model of a checkpoint, loaded tensor by tensor to its device.

Memory never holds it twice: beside what has been read there is one file of the checkpoint at
most, mapped, and one matrix on its way. That is so where its matrices are kept in eight bits,
too: 9 GB instead of 16 at full scale, on the device and on the way to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.config_values import config_in
from ..quantization.quantize import PRECISIONS
from ..quantization.quantized_linear import quantize_layers, quantized_tensors
from ..weights.streaming import empty_model, fill, tensors_in

HEAD = "lm_head."
# What comes before a tensor's name in the released files, and in those that transformers 5
# writes of the whole model or of the model without its head: what it is here.
_LAYOUTS = (
    (re.compile(r"^model\.(?=(language_model|visual)\.)"), ""),
    (re.compile(r"^model\."), "language_model."),
)


def load_text_encoder(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: str | torch.device, eight_bits: bool
) -> Any:
    """Return the Qwen2_5_VLModel of `checkpoint`, frozen, in eval mode, on `device`.

    Its head (a gigabyte at full scale) is not read.

    Args:
        eight_bits: keep every linear layer of the decoder's layers as int8 with one scale a
            row. 6.5 of the 8.3 billion parameters at full scale; embeddings, norms and the
            vision tower stay as they are.

    Raises:
        WrongUse: the folder does not hold this model, or not all of its weights.
        Damaged: a file is cut short.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    folder = checkpoint.text_encoder

    def build() -> nn.Module:
        return Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(_config(folder)))

    model = empty_model(build, folder, "a text encoder")
    read = tensors_in(
        folder, remember=checkpoint.remember, wanted=lambda name: not name.startswith(HEAD)
    )
    tensors = _named_as_here(read)
    if eight_bits:
        precision = PRECISIONS["int8-quanto"]
        layers = quantize_layers(model, precision, within="language_model.layers.")
        tensors = quantized_tensors(tensors, layers, precision, dtype=dtype, via=device)
    return fill(model, tensors, dtype=dtype, device=device, source=folder)


def _config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the model in `folder`, without what it says twice.

    The released one repeats the language model's rotary settings outside of `text_config`, where
    transformers reads nothing of them and prints two warnings.
    """
    config = config_in(folder)
    repeated = {"rope_scaling", "rope_theta"} if "text_config" in config else set()
    return {key: value for key, value in config.items() if key not in repeated}


def _named_as_here(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        for before, here in _LAYOUTS:
            name, found = before.subn(here, name)
            if found:
                break
        yield name, tensor
