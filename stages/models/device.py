"""Which device and which number format a stage works in."""

from __future__ import annotations

import torch

from ...cache.errors import WrongUse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype that settings call `name` (fp32 or bf16)."""
    return DTYPES[name]


def best_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, else Apple's, else the CPU.

    Raises:
        WrongUse: there is no such device here.
    """
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise WrongUse(
                f"There is no device '{name}' here: {str(error).splitlines()[0]}",
                "Use --device auto, cpu, cuda or cuda:1.",
            ) from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
