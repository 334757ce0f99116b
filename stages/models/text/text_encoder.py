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

from ....cache.errors import WrongUse
from ..quantization.quantize import PRECISIONS
from ..quantization.quantized_linear import QuantizedLinear, quantized_tensors
from ..weights.streaming import fill, tensors_in

HEAD = "lm_head."
# What comes before a tensor's name in the released files, and in those that transformers 5
# writes of the whole model or of the model without its head: what it is here.
_LAYOUTS = (
    (re.compile(r"^model\.(?=(language_model|visual)\.)"), ""),
    (re.compile(r"^model\."), "language_model."),
)


def load_text_encoder(
    folder: Path, *, dtype: torch.dtype, device: str | torch.device, eight_bits: bool
) -> Any:
    """Return the Qwen2_5_VLModel that lies in `folder`, frozen, in eval mode, on `device`.

    Its head (a gigabyte at full scale) is not read.

    Args:
        eight_bits: keep every linear layer of the decoder's layers as int8 with one scale a
            row. 6.5 of the 8.3 billion parameters at full scale; embeddings, norms and the
            vision tower stay as they are.

    Raises:
        WrongUse: the folder does not hold this model, or not all of its weights.
        Damaged: a file is cut short.
    """
    model = _without_weights(folder)
    tensors = _named_as_here(tensors_in(folder, wanted=lambda name: not name.startswith(HEAD)))
    if eight_bits:
        precision = PRECISIONS["int8-quanto"]
        layers = _to_eight_bits(model)
        tensors = quantized_tensors(tensors, layers, precision, dtype=dtype, via=device)
    return fill(model, tensors, dtype=dtype, device=device, source=folder)


def _without_weights(folder: Path) -> nn.Module:
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    try:
        config = Qwen2_5_VLConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise WrongUse(
            f"{folder} cannot be loaded as a text encoder: {str(error).splitlines()[0]}",
            "Check `pretrained_model_name_or_path` and the options that override its parts.",
        ) from error
    with init_empty_weights(include_buffers=False):
        model: nn.Module = Qwen2_5_VLModel(config)
    return model.eval().requires_grad_(False)


def _named_as_here(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        for before, here in _LAYOUTS:
            name, found = before.subn(here, name)
            if found:
                break
        yield name, tensor


def _to_eight_bits(model: Any) -> set[str]:
    """Replace each linear layer of the decoder by an 8-bit one; return their names."""
    precision = PRECISIONS["int8-quanto"]
    names = {
        name
        for name, module in model.named_modules()
        if name.startswith("language_model.layers.") and isinstance(module, nn.Linear)
    }
    for name in names:
        path, _, leaf = name.rpartition(".")
        layer = QuantizedLinear(model.get_submodule(name), precision)
        setattr(model.get_submodule(path), leaf, layer)
    return names
