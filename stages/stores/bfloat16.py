"""bfloat16 tensors as the uint16 bits that a Zarr array can hold, and back, exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def bits_of(tensor: Tensor) -> np.ndarray:
    """Round `tensor` to bfloat16 and give its bits as uint16 of the same shape."""
    return tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()


def tensor_of(bits: np.ndarray) -> Tensor:
    """The bfloat16 tensor whose bits these are; shares memory with `bits`."""
    return torch.from_numpy(bits).view(torch.bfloat16)


def bits_in(tensor: Tensor) -> np.ndarray:
    """The bits of a bfloat16 tensor on the CPU; shares memory with `tensor`."""
    return tensor.view(torch.uint16).numpy()
