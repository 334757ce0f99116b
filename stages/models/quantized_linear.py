"""A frozen linear layer whose weight is kept in few bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .quantize import Precision, dequantized, quantized, shapes_of

_LEAST_ROWS = 32  # of a product of whole numbers on a GPU


class QuantizedLinear(nn.Linear):
    """`linear` with a weight in few bits, written out anew for every product.

    Nothing but the input's gradient comes out of the backward, and nothing of full size is kept
    for it. `weight` holds the bits, so that whoever moves parameters moves them.

    Args:
        linear: of the same size; its bias stays, its weight may be on the meta device.
        quantizes_activations: multiply whole numbers, each row of the input with a scale of
            its own (int8 alone).
    """

    def __init__(
        self, linear: nn.Linear, precision: Precision, *, quantizes_activations: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.precision, self.quantizes_activations = precision, quantizes_activations
        self.bias = linear.bias
        shapes = shapes_of(self.out_features, self.in_features, precision)
        self._names = tuple(shapes)
        for name, shape in shapes.items():
            empty = torch.empty(shape, dtype=torch.uint8, device="meta")
            if name == "weight":
                self.weight = nn.Parameter(empty, requires_grad=False)
            else:
                self.register_buffer(name, empty)

    def forward(self, input: Float[Tensor, "*batch channel"]) -> Float[Tensor, "*batch _channel"]:
        if torch.compiler.is_compiling():
            return functional.linear(input, self.dequantized(input.dtype), self.bias)
        product: Tensor = _Product.apply(input, self, self.tensors())  # type: ignore[no-untyped-call]
        return product

    def tensors(self) -> dict[str, Tensor]:
        """What stands for the weight, as it is now: it may come and go with its block."""
        return {name: getattr(self, name) for name in self._names}

    def dequantized(
        self, dtype: torch.dtype, tensors: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "out in"]:
        """The weight in full."""
        shape = (self.out_features, self.in_features)
        return dequantized(tensors or self.tensors(), self.precision, shape=shape, dtype=dtype)

    def product(self, input: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The output, outside of autograd."""
        if not self.quantizes_activations:
            return functional.linear(input, self.dequantized(input.dtype, tensors), self.bias)
        rows = input.reshape(-1, self.in_features).float()
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        levels = (rows / scale).round().to(torch.int8)
        padded = functional.pad(levels, (0, 0, 0, max(0, _LEAST_ROWS - len(levels))))
        whole = torch._int_mm(padded, tensors["weight"].t())[: len(levels)]
        output: Tensor = whole.float() * scale * tensors["scale"].float().t()
        if self.bias is not None:
            output = output + self.bias.float()
        return output.to(input.dtype).reshape(*input.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """The backward needs the bits alone.

    They are saved as autograd saves tensors: a block that is recomputed must not hold the bits
    its first forward was given, which are on the device only while they are used.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, layer: QuantizedLinear, tensors: Mapping[str, Tensor]
    ) -> Tensor:
        ctx.layer, ctx.names = layer, tuple(tensors)
        ctx.save_for_backward(*tensors.values())
        return layer.product(input, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        tensors = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        return gradient @ ctx.layer.dequantized(gradient.dtype, tensors), None, None


# -- a whole transformer -----------------------------------------------------------------


def quantize_layers(
    transformer: nn.Module, precision: Precision, *, quantizes_activations: bool = False
) -> set[str]:
    """Put a `QuantizedLinear` in the place of every linear layer of the blocks; their names.

    What is outside of the blocks is small, and stays.
    """
    names = {
        name
        for name, module in transformer.named_modules()
        if name.startswith("transformer_blocks.") and isinstance(module, nn.Linear)
    }
    for name in names:
        path, _, leaf = name.rpartition(".")
        linear = transformer.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = QuantizedLinear(linear, precision, quantizes_activations=quantizes_activations)
        setattr(transformer.get_submodule(path), leaf, layer)
    return names


def quantized_tensors(
    tensors: Iterable[tuple[str, Tensor]],
    layers: set[str],
    precision: Precision,
    *,
    dtype: torch.dtype,
    via: str | torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """`tensors` with the weights of `layers` quantised on the device `via`, one at a time.

    All others come to be of `dtype`.
    """
    for name, tensor in tensors:
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or layer not in layers:
            yield name, tensor.to(dtype)
            continue
        for part, value in quantized(tensor.to(via, dtype), precision).items():
            yield f"{layer}.{part}", value
