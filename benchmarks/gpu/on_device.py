"""The device: its memory, how fast it multiplies, and which kernels compute attention."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qedit.stages.models.memory_estimate.memory_plan import GIGABYTE

CEILING_EDGE = 8192
PACKAGES = ("torch", "diffusers", "transformers", "peft")


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cap(device: torch.device, gigabytes: float) -> float:
    """Allow so much of the device, its context included; 0: all of it."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        allowed = gigabytes * GIGABYTE - context_bytes(device) if gigabytes else total
        torch.cuda.set_per_process_memory_fraction(allowed / total, device)
    return 0.0


def context_bytes(device: torch.device) -> int:
    """What the driver and the libraries have taken by now."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors took, with the context; gaps between them are not counted."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) + context_bytes(device)


def ceiling(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a large bf16 product: what nothing here can beat. And what it ran on."""
    edge = CEILING_EDGE if device.type == "cuda" else 512
    left, right = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        wait(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        wait(device)
        best = min(best, time.perf_counter() - start)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    tflops = 2 * edge**3 / best / 1e12
    facts = {"device": name, "versions": versions, "TFLOP/s": round(tflops, 2)}
    return {"tflops": tflops, "facts": facts}


@contextmanager
def attention_kernels(first: str) -> Iterator[None]:
    """Have attention computed by the kernels of `first` where they can; empty: torch chooses.

    `train` leaves the choice to torch: the rows named cuDNN say whether another is worth it.
    """
    if not first:
        yield
        return
    fast = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    order = [fast.pop(first), *fast.values(), SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        yield
