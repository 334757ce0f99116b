"""Which device and which number format a stage works in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

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


# How the libraries say it where it is no torch.OutOfMemoryError (Apple's GPUs, the CPU).
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device has no room."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def release_memory() -> None:
    """Give what nothing refers to any more back to the devices."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


@dataclass(frozen=True)
class Taken:
    """Memory of a device: what a piece of work used at its peak, and what was free before."""

    used_bytes: int
    free_bytes: int


def memory_taken(work: Callable[[], object], *, device: torch.device) -> Taken | None:
    """Do `work` on `device` and say how much memory it took.

    None where that cannot be asked, and then `work` is not done; also where it did not fit.
    """
    if device.type != "cuda":
        return None
    release_memory()
    torch.cuda.reset_peak_memory_stats(device)
    before, free = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)[0]
    try:
        work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return Taken(torch.cuda.max_memory_reserved(device) - before, free)
