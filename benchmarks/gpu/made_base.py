"""A frozen base with random weights, made on the device tensor by tensor: memory and speed do not
depend on the values, and no 41 GB file has to be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qedit.stages.models.quantization.quantize import precision_for
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.timesteps import Bits, row_shape
from qedit.stages.models.transformer.modulation import tabulate
from qedit.stages.models.weights.streaming import empty_transformer, fill

DTYPE = torch.bfloat16


def made_base(
    folder: Path,
    *,
    zero_cond_t: bool,
    precision: str,
    table: bool,
    device: torch.device,
    lies_on: torch.device | None = None,
) -> nn.Module:
    """The transformer that `folder` configures, as `train` would hold it.

    Args:
        table: whether modulation comes from a table; then its weights are not made.
        lies_on: where the weights are put; None: on `device`, which makes them.
    """
    lies_on = lies_on or device
    transformer = empty_transformer(folder, zero_cond_t=zero_cond_t)
    if table:
        tabulate(transformer, _rows(transformer))
    shapes = {name: weight.shape for name, weight in transformer.named_parameters()}
    tensors: Iterator[tuple[str, Tensor]] = random_tensors(shapes, device=device)
    if precision != "no_change":
        number_format = precision_for(precision, device=device)
        layers = quantize_layers(transformer, number_format)
        tensors = quantized_tensors(tensors, layers, number_format, dtype=DTYPE, via=device)
    return fill(transformer, tensors, dtype=DTYPE, device=lies_on, source=folder)


def random_tensors(
    shapes: Mapping[str, torch.Size], *, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """A tensor for each name, made on `device`: the same ones for the same shapes."""
    generator = torch.Generator(device).manual_seed(0)
    for name, shape in shapes.items():
        if len(shape) == 1:
            value = float(name.endswith("weight"))  # norms are one, biases nothing
            yield name, torch.full(shape, value, device=device, dtype=DTYPE)
            continue
        tensor = torch.randn(shape, device=device, dtype=DTYPE, generator=generator)
        yield name, tensor.mul_(1 / math.sqrt(shape[-1]))


def _rows(transformer: nn.Module) -> object:
    blocks = len(transformer.get_submodule("transformer_blocks"))  # type: ignore[arg-type]
    width = transformer.get_submodule("img_in").out_features
    assert isinstance(width, int)
    shape = row_shape(blocks=blocks, width=width)
    rows: dict[Bits, Tensor] = {}

    def read(bits: Bits) -> Tensor:
        if bits not in rows:
            generator = torch.Generator().manual_seed(bits)
            rows[bits] = torch.randn(shape, generator=generator).mul_(0.1).to(DTYPE)
        return rows[bits]

    return read
