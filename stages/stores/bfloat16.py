"""bfloat16 tensors as the uint16 bits that a Zarr array can hold, and back, exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def bits_of(tensor: Tensor) -> np.ndarray:
    """Round `tensor` to bfloat16 and return its bits as uint16 of the same shape."""
    return tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()


def tensor_of(bits: np.ndarray) -> Tensor:
    """Return the bfloat16 tensor whose bits these are; it shares memory with `bits`."""
    return torch.from_numpy(bits).view(torch.bfloat16)


def bits_in(tensor: Tensor) -> np.ndarray:
    """Return the bits of a bfloat16 tensor on the CPU; they share memory with `tensor`."""
    return tensor.view(torch.uint16).numpy()
