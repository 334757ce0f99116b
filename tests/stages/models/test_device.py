"""The device that is chosen, and how its memory is allocated."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
import torch

from qedit.cache.errors import WrongUse
from qedit.stages.models.device import (
    allow_tf32,
    best_device,
    enable_expandable_segments,
    exact_float32,
    is_float32_exact,
    is_out_of_memory,
)

NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of memory, on Linux, before any use of a GPU; put back afterwards."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


def said() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_a_gpu_that_is_chosen_gives_out_memory_that_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device("auto") == torch.device("cuda")
    assert said() == {NAMES[0]: "expandable_segments:True"}


def test_a_gpu_that_is_named_does_before_anything_lies_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: asked.append(said()))
    assert best_device("cuda:1") == torch.device("cuda:1")
    assert asked == [{NAMES[0]: "expandable_segments:True"}]


def test_processors_are_left_alone() -> None:
    assert best_device("cpu") == torch.device("cpu")
    assert said() == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_of_memory_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:128")
    enable_expandable_segments(torch.device("cuda"))
    assert said() == {name: "max_split_size_mb:128"}


def test_a_gpu_in_use_and_other_systems_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as here:
        here.setattr("sys.platform", "win32")
        enable_expandable_segments(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    enable_expandable_segments(torch.device("cuda"))
    assert said() == {}


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(WrongUse, match="no device 'nonsense'"):
        best_device("nonsense")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("HIP error: Out Of Memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_float32_is_exact_inside_and_as_before_outside() -> None:
    """PyTorch's convolutions have TF32 by default; its matrix products have not."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = (conv.fp32_precision, matmul.fp32_precision)
    assert before[0] == "tf32", "or there is nothing to switch off"
    inside = []
    with suppress(KeyError), exact_float32():
        inside += [is_float32_exact(), conv.fp32_precision, matmul.fp32_precision]
        raise KeyError
    assert inside == [True, "ieee", "ieee"]
    assert (conv.fp32_precision, matmul.fp32_precision) == before


def test_training_says_how_float32_is_multiplied() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for allowed, precision, words in (
            (True, "tf32", " with TF32"),
            (False, "ieee", " with exact float32"),
        ):
            assert allow_tf32(torch.device("cuda"), allowed=allowed) == words
            assert matmul.fp32_precision == precision
            assert allow_tf32(torch.device("cpu"), allowed=allowed) == ""
    finally:
        matmul.fp32_precision = before
