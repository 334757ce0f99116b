"""The device and the number format that a stage works in, and the memory it takes there."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...cache.errors import WrongUse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_named(name: str) -> torch.dtype:
    """Return the torch dtype that settings call `name` (fp32 or bf16)."""
    return DTYPES[name]


def best_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first GPU, else Apple's, else the CPU.

    Raises:
        WrongUse: there is no such device here.
    """
    if name != "auto":
        try:
            device = torch.device(name)
            enable_expandable_segments(device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise WrongUse(
                f"There is no device '{name}' here: {str(error).splitlines()[0]}",
                "Use --device auto, cpu, cuda or cuda:1.",
            ) from error
        return device
    if torch.cuda.is_available():
        enable_expandable_segments(torch.device("cuda"))
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# Where users say how memory is given out. Every torch from 2.6 on knows the first, and looks at it
# before the others.
_SAYS_HOW = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def enable_expandable_segments(device: torch.device) -> None:
    """Make torch's CUDA allocator use expandable segments, against fragmentation.

    Steps of many sizes, blocks that come and go and previews else leave pieces behind in which
    the next tensor has no room, though together they would have: a run that just fits ends some
    thousand steps later. To be called before the GPU is first used; later it does nothing, nor
    where the user has said how memory is given out.
    """
    user_decides = any(name in os.environ for name in _SAYS_HOW)
    able = device.type == "cuda" and sys.platform == "linux" and not torch.cuda.is_initialized()
    if able and not user_decides:
        os.environ[_SAYS_HOW[0]] = "expandable_segments:True"


# How the libraries say it where it is no torch.OutOfMemoryError (Apple's GPUs, the CPU).
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that a device, or the host, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


# Where PyTorch says how products of float32 numbers are computed on NVIDIA's GPUs.
_FLOAT32: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute products of float32 numbers exactly inside: no TF32, which has 10 of 23 bits.

    PyTorch's convolutions use TF32 by default.
    """
    before = [kernels.fp32_precision for kernels in _FLOAT32]
    try:
        for kernels in _FLOAT32:
            kernels.fp32_precision = "ieee"
        yield
    finally:
        for kernels, value in zip(_FLOAT32, before, strict=True):
            kernels.fp32_precision = value


def allow_tf32(device: torch.device, *, allowed: bool) -> str:
    """Have this process multiply float32 matrices in TF32, or exactly.

    Returns:
        What that means on `device`, in words to stand behind its name; "" where it means nothing.
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    if device.type != "cuda":
        return ""
    return " with TF32" if allowed else " with exact float32"


def is_float32_exact() -> bool:
    """Return whether `exact_float32` is in force."""
    return all(kernels.fp32_precision == "ieee" for kernels in _FLOAT32)


def release_memory() -> None:
    """Free unreferenced memory on the host and on the devices."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


@dataclass(frozen=True)
class MemoryUse:
    """The device memory that a piece of work used at its peak, and the memory free before it."""

    used_bytes: int
    free_bytes: int


def memory_taken(work: Callable[[], object], *, device: torch.device) -> MemoryUse | None:
    """Run `work` on `device` and return how much memory it took.

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
    return MemoryUse(torch.cuda.max_memory_reserved(device) - before, free)
