"""Safetensors files written tensor by tensor, without a second copy of the model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....cache.errors import Broken
from ....cache.files.atomic import new_file
from ....cache.files.fingerprint import new_digest
from ....cache.regular_file import refuse_irregular
from ..checkpoint.weights_header import packed

# How a safetensors header calls them.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def metadata_in(path: Path) -> Mapping[str, str]:
    """Return the metadata of a safetensors file; nothing where there is none to read."""
    try:
        refuse_irregular(path)
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, Broken):
        return {}


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    values: Callable[[str], Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write `tensors` as a safetensors file at `path`; return the content digest of its bytes.

    Each tensor is brought to the CPU when it is its turn, and given up again. Equal tensors and
    metadata give equal bytes.

    Args:
        values: gives the values of a tensor by its name when it is its turn; `tensors` then have
            no values. None: `tensors` have them.
        dtype: what the tensors are stored in; None: as they are.
    """
    # the widest first: so each begins at a multiple of its own size
    names = sorted(tensors, key=lambda name: (-_kind(tensors[name], dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in names:
        kind, shape = _kind(tensors[name], dtype), list(tensors[name].shape)
        end = start + prod(shape) * kind.itemsize
        header[name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": [start, end]}
        start = end
    digest = new_digest()
    with new_file(path) as file:
        for piece in _pieces(header, map(values or tensors.__getitem__, names), dtype):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def as_text(about: Mapping[str, Any]) -> dict[str, str]:
    """Return `about` as safetensors metadata: values that are no text become JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()
    }


def _kind(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None else dtype


def _pieces(
    header: Mapping[str, Any], tensors: Iterator[Tensor], dtype: torch.dtype | None
) -> Iterator[bytes | memoryview]:
    """Yield the file's bytes: the header, and one tensor after another."""
    yield packed(header)
    for tensor in tensors:
        there = tensor.detach().to("cpu", _kind(tensor, dtype)).contiguous()
        yield there.reshape(-1).view(torch.uint8).numpy().data
