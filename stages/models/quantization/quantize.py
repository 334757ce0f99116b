"""Quantised weights: the number formats and what each requires.

The formats are those of optimum-quanto (int8 and fp8: a scale for each output; int4 and int2: a
scale and an offset for groups of up to 128 inputs) and of bitsandbytes (nf4). quanto itself is
not used: it imports transformers, compiles an extension for int4 and int2 on first use, and
cannot take a model tensor by tensor. A weight is quantised in float32 and its scales are kept
in the dtype it is trained in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ....cache.errors import WrongUse

LARGEST_GROUP = 128
NF4_BLOCK = 64
_FLOAT8 = torch.float8_e4m3fn
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Precision:
    """A number format of the frozen base.

    Attributes:
        bits: of one weight.
        grouped: whether groups of inputs have a scale and an offset of their own.
        not_on: types of devices that cannot compute with it.
        needs: the package that does the arithmetic; empty for none.
    """

    name: str
    bits: int
    grouped: bool = False
    not_on: tuple[str, ...] = ()
    needs: str = ""


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("int8-quanto", 8),
        Precision("fp8-quanto", 8, not_on=("mps",)),
        Precision("int4-quanto", 4, grouped=True),
        Precision("int2-quanto", 2, grouped=True),
        Precision("nf4-bnb", 4, not_on=("mps",), needs="bitsandbytes"),
    )
}


def precision_for(
    name: str, *, device: str | torch.device, quantizes_activations: bool = False
) -> Precision:
    """Return the format `base_model_precision` names, if `device` can compute with it.

    Raises:
        WrongUse: it cannot; or a package is missing.
    """
    precision, kind = PRECISIONS[name], torch.device(device).type
    others = ", ".join(key for key, format_ in PRECISIONS.items() if kind not in format_.not_on)
    if kind in precision.not_on:
        raise WrongUse(
            f"`base_model_precision` {name} cannot run on {device}.",
            f"Choose one of {others}.",
        )
    if quantizes_activations and (precision.name != "int8-quanto" or kind == "mps"):
        raise WrongUse(
            f"`quantize_activations` cannot run with {name} on {device}: products of 8-bit whole "
            "numbers need int8-quanto, on a CPU or a CUDA device.",
            "Set `quantize_activations` to false, or `base_model_precision` to int8-quanto.",
        )
    if precision.needs:
        _bitsandbytes()
    return precision


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except (ImportError, RuntimeError) as error:
        raise WrongUse(
            f"`base_model_precision` nf4-bnb needs the package bitsandbytes, which cannot be "
            f"imported here ({error}).",
            "Type `pip install 'qedit[nf4]'`, or choose int4-quanto.",
        ) from error
    return functional


# -- there -------------------------------------------------------------------------------


@torch.no_grad()
def quantized(weight: Float[Tensor, "out in"], precision: Precision) -> dict[str, Tensor]:
    """Return the tensors that stand for `weight`: its bits as `weight`, and their scales.

    Scales are of the dtype of `weight`. Calls of equal arguments give equal bits.
    """
    exact = weight.float()
    if precision.name == "nf4-bnb":
        bits, state = _bitsandbytes().quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4")
        return {"weight": bits.view(torch.uint8), "scale": state.absmax}
    if precision.grouped:
        return _in_groups(exact, precision.bits, dtype=weight.dtype)
    largest = torch.finfo(_FLOAT8).max if precision.name == "fp8-quanto" else 127.0
    scale = (exact.abs().amax(1, keepdim=True) / largest).clamp_min(_TINY).to(weight.dtype)
    levels = exact / scale.float()
    if precision.name == "fp8-quanto":
        bits = levels.clamp(-largest, largest).to(_FLOAT8).view(torch.uint8)
    else:
        bits = levels.round().clamp(-128, 127).to(torch.int8)
    return {"weight": bits, "scale": scale}


def _in_groups(
    exact: Float[Tensor, "out in"], bits: int, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    groups = exact.unflatten(1, (-1, group_length(exact.shape[1])))
    lowest = groups.amin(2, keepdim=True).to(dtype)
    span = groups.amax(2, keepdim=True) - lowest.float()
    scale = (span / (2**bits - 1)).clamp_min(_TINY).to(dtype)
    levels = ((groups - lowest.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    packed = packed_bits(levels.to(torch.uint8).flatten(1), bits)
    return {"weight": packed, "scale": scale, "lowest": lowest}


def group_length(inputs: int) -> int:
    """Return how many inputs share a scale: 128, or the next multiple of 32 that fits, or all."""
    fitting = (length for length in range(LARGEST_GROUP, 31, -32) if inputs % length == 0)
    return next(fitting, inputs)


def packed_bits(levels: UInt8[Tensor, "out in"], bits: int) -> UInt8[Tensor, "out _bytes"]:
    """Pack levels of few bits into bytes, the first in the lowest bits.

    A level shares its byte with those that lie a whole share of the inputs further on, so
    that unpacking writes long runs.
    """
    shares = levels.chunk(8 // bits, dim=1)
    packed = torch.zeros_like(shares[0])
    for place, share in enumerate(shares):
        packed |= share << (bits * place)
    return packed


def shapes_of(outputs: int, inputs: int, precision: Precision) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that `quantized` gives for a weight of this size."""
    if precision.name == "nf4-bnb":
        blocks = -(-outputs * inputs // NF4_BLOCK)
        return {"weight": (-(-outputs * inputs // 2), 1), "scale": (blocks,)}
    if not precision.grouped:
        return {"weight": (outputs, inputs), "scale": (outputs, 1)}
    group = (outputs, inputs // group_length(inputs), 1)
    return {"weight": (outputs, inputs * precision.bits // 8), "scale": group, "lowest": group}


# -- and back ----------------------------------------------------------------------------


def dequantized(
    tensors: Mapping[str, Tensor],
    precision: Precision,
    *,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Float[Tensor, "out in"]:
    """Return the weight of `shape` in `dtype` from the tensors that `quantized` made of it."""
    bits, scale = tensors["weight"], tensors["scale"]
    if precision.name == "nf4-bnb":
        return _from_nf4(bits, scale, shape=shape, dtype=dtype)
    if precision.grouped:
        return _from_groups(tensors, precision.bits, shape=shape, dtype=dtype)
    if precision.name == "fp8-quanto":
        return bits.view(_FLOAT8).to(dtype) * scale.to(dtype)
    return bits * scale.to(dtype)  # 8 bits are exact in `dtype`, and are read once


def _from_groups(
    tensors: Mapping[str, Tensor], bits: int, *, shape: tuple[int, int], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """Unpack each share of a byte's bits straight to its place in the weight."""
    scale, lowest = (tensors[name].to(dtype) for name in ("scale", "lowest"))
    shares = 8 // bits
    if scale.shape[1] % shares:  # a group lies across the border of two shares
        groups = unpacked_bits(tensors["weight"], bits).unflatten(1, (scale.shape[1], -1))
        return torch.addcmul(lowest, groups.to(dtype), scale).flatten(1)
    weight = torch.empty(shape, dtype=dtype, device=scale.device)
    for place, (target, factor, offset) in enumerate(
        zip(*(tensor.chunk(shares, dim=1) for tensor in (weight, scale, lowest)), strict=True)
    ):
        levels = tensors["weight"] if place == 0 else tensors["weight"] >> (bits * place)
        if place < shares - 1:  # above the last share there is nothing
            levels = levels & (2**bits - 1)
        groups, into = (tensor.unflatten(1, (factor.shape[1], -1)) for tensor in (levels, target))
        torch.addcmul(offset, groups, factor, out=into)
    return weight


def unpacked_bits(packed: UInt8[Tensor, "out _bytes"], bits: int) -> UInt8[Tensor, "out in"]:
    """Undo `packed_bits`."""
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=1)


def _from_nf4(
    bits: Tensor, absmax: Tensor, *, shape: tuple[int, int], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    functional = _bitsandbytes()
    state = functional.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        dtype=dtype,
        blocksize=NF4_BLOCK,
        quant_type="nf4",
    )
    weight: Tensor = functional.dequantize_4bit(bits, state)
    return weight
