"""A frozen linear layer with a quantised weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .quantize import PRECISIONS, Precision, dequantized, quantized, shapes_of

_LEAST_ROWS = 32  # of a product of whole numbers on a GPU


class QuantizedLinear(nn.Linear):
    """A frozen `linear` with a quantised weight, dequantised anew for every product.

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
            return self._in_one_piece(input)
        product: Tensor = _Product.apply(input, self, self.tensors())  # type: ignore[no-untyped-call]
        return product

    def _in_one_piece(self, input: Tensor) -> Tensor:
        """Return the product as one operation for a compiler, with nothing inside to save."""
        product: Tensor = _opaque_product(
            input,
            list(self.tensors().values()),
            self.bias,
            self.precision.name,
            [self.out_features, self.in_features],
            self.quantizes_activations,
        )
        return product

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the weight as they are now: block streaming moves them."""
        return {name: getattr(self, name) for name in self._names}

    def dequantized(
        self, dtype: torch.dtype, tensors: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "out in"]:
        """Return the weight in full."""
        shape = (self.out_features, self.in_features)
        return dequantized(tensors or self.tensors(), self.precision, shape=shape, dtype=dtype)

    def product(self, input: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the output [..., out] for `input` [..., in], outside of autograd."""
        if not self.quantizes_activations:
            return functional.linear(input, self.dequantized(input.dtype, tensors), self.bias)
        return _product_of_levels(input, tensors, self.bias)


def _product_of_levels(input: Tensor, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """Return the int8 matrix product; each row of `input` is quantised with its own scale."""
    bits = tensors["weight"]
    rows = input.reshape(-1, bits.shape[1]).float()
    scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
    levels = (rows / scale).round().to(torch.int8)
    padded = functional.pad(levels, (0, 0, 0, max(0, _LEAST_ROWS - len(levels))))
    whole = torch._int_mm(padded, bits.t())[: len(levels)]
    output: Tensor = whole.float() * scale * tensors["scale"].float().t()
    if bias is not None:
        output = output + bias.float()
    return output.to(input.dtype).reshape(*input.shape[:-1], len(bits))


class _Product(torch.autograd.Function):
    """An autograd function whose backward needs the quantised tensors alone.

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


def _product_in_few_bits(
    input: Tensor,
    tensors: list[Tensor],
    bias: Tensor | None,
    precision: str,
    shape: list[int],
    quantizes_activations: bool,
) -> Tensor:
    if quantizes_activations:
        return _product_of_levels(input, _named(tensors, precision, shape), bias)
    return functional.linear(input, _weight(tensors, precision, shape, input.dtype), bias)


def _gradient_in_few_bits(
    gradient: Tensor, tensors: list[Tensor], precision: str, shape: list[int]
) -> Tensor:
    return gradient @ _weight(tensors, precision, shape, gradient.dtype)


def _weight(tensors: list[Tensor], precision: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    named, (outputs, inputs) = _named(tensors, precision, shape), shape
    return dequantized(named, PRECISIONS[precision], shape=(outputs, inputs), dtype=dtype)


def _named(tensors: list[Tensor], precision: str, shape: list[int]) -> dict[str, Tensor]:
    names = shapes_of(shape[0], shape[1], PRECISIONS[precision])
    return dict(zip(names, tensors, strict=True))


# -- for compilers -----------------------------------------------------------------------
# A compiler that looked inside would keep the written-out weights for the backward.

_opaque_product = torch.library.custom_op(
    "qedit::product_in_few_bits",
    _product_in_few_bits,
    mutates_args=(),
    schema="(Tensor input, Tensor[] tensors, Tensor? bias, str precision, int[] shape, "
    "bool quantizes_activations) -> Tensor",
)
_opaque_gradient = torch.library.custom_op(
    "qedit::gradient_in_few_bits",
    _gradient_in_few_bits,
    mutates_args=(),
    schema="(Tensor gradient, Tensor[] tensors, str precision, int[] shape) -> Tensor",
)


@_opaque_product.register_fake
def _(input: Any, tensors: Any, bias: Any, precision: Any, shape: Any, quantizes: Any) -> Any:
    return input.new_empty(*input.shape[:-1], shape[0])


@_opaque_gradient.register_fake
def _(gradient: Any, tensors: Any, precision: Any, shape: Any) -> Any:
    return gradient.new_empty(*gradient.shape[:-1], shape[1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    _, tensors, _, ctx.precision, ctx.shape, _ = inputs
    ctx.save_for_backward(*tensors)


def _back(ctx: Any, gradient: Any) -> Any:
    tensors = list(ctx.saved_tensors)
    passed = _opaque_gradient(gradient.contiguous(), tensors, ctx.precision, ctx.shape)
    return passed, [None] * len(tensors), None, None, None, None


_opaque_product.register_autograd(_back, setup_context=_keep)


# -- a whole model -----------------------------------------------------------------------


def quantize_layers(
    model: nn.Module,
    precision: Precision,
    *,
    within: str = "transformer_blocks.",
    quantizes_activations: bool = False,
) -> set[str]:
    """Replace every linear layer of the blocks by a `QuantizedLinear`; return their names.

    What is outside of the blocks is small, and stays.

    Args:
        within: what the names of the blocks' layers begin with.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(within) and isinstance(module, nn.Linear)
    }
    for name, linear in linears.items():
        path, _, leaf = name.rpartition(".")
        layer = QuantizedLinear(linear, precision, quantizes_activations=quantizes_activations)
        setattr(model.get_submodule(path), leaf, layer)
    return set(linears)


def quantized_tensors(
    tensors: Iterable[tuple[str, Tensor]],
    layers: set[str],
    precision: Precision,
    *,
    dtype: torch.dtype,
    via: str | torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """Yield `tensors`, with the weights of `layers` quantised on the device `via` one at a time.

    All others come to be of `dtype`.
    """
    for name, tensor in tensors:
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or layer not in layers:
            yield name, tensor.to(dtype)
            continue
        for part, value in quantized(tensor.to(via, dtype), precision).items():
            yield f"{layer}.{part}", value
