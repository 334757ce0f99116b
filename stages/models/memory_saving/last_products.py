"""Last products: the matrix products of a block that its recomputation may skip.

The recomputation needs only the tensors that the backward reads, and the outputs of the block's
two MLPs are among those only where the gate in front of them is trained. Skipped products still
pass through autograd with empty tensors of the right shape, so that it finds what it saved.
`recompute.py` shows where this stands among the hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ..quantization.quantized_linear import QuantizedLinear
from ..transformer.compiled import is_compiled

# The modulation whose gate stands before the output, and the layer that makes it.
_STREAMS = (("img_mod", "img_mlp.net.2"), ("txt_mod", "txt_mlp.net.2"))
_CLIPPED = torch.float16  # the block's output is, and a clip looks at what it was given


def last_products(block: nn.Module, states: Tensor, embedding: Tensor) -> list[nn.Linear]:
    """Return the layers of `block` whose outputs its backward never reads.

    None of a compiled block: its program would be another one, and takes what it takes.

    Args:
        embedding: of the timestep: where it learns, so do all gates.
    """
    if is_compiled(block) or embedding.requires_grad or states.dtype == _CLIPPED:
        return []
    found = ((block.get_submodule(gate), block.get_submodule(name)) for gate, name in _STREAMS)
    return [layer for gate, layer in found if _is_plain(layer) and not _learns(gate, layer)]


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether `layer` is a single product; a LoRA on it would make it two."""
    return type(layer) in (nn.Linear, QuantizedLinear)


def _learns(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


class SkippedProducts:
    """A context in which `layers` return empty tensors of their outputs' shapes.

    Args:
        around: a context that is entered before this one and left after it.
    """

    def __init__(
        self, layers: Sequence[nn.Linear], around: AbstractContextManager[Any] | None = None
    ) -> None:
        self._layers, self._around = layers, around or nullcontext()

    def __enter__(self) -> None:
        self._around.__enter__()
        for layer in self._layers:
            if isinstance(layer, QuantizedLinear):
                object.__setattr__(layer, "product", partial(_nothing, layer))
            else:
                object.__setattr__(layer, "forward", partial(_in_shape_alone, layer))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        for layer in self._layers:
            vars(layer).pop("product" if isinstance(layer, QuantizedLinear) else "forward")
        return self._around.__exit__(kind, error, trace)


def _nothing(layer: nn.Linear, input: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return _empty(input, channels=layer.out_features)


def _in_shape_alone(layer: nn.Linear, input: Tensor) -> Tensor:
    with _NoProducts():  # type: ignore[no-untyped-call]
        return type(layer).forward(layer, input)


class _NoProducts(TorchDispatchMode):
    """A dispatch mode that returns empty tensors for matrix products, below autograd."""

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function in _PRODUCTS:
            left, right = args[-2:]
            return _empty(left, channels=right.shape[-1])
        return function(*args, **(kwargs or {}))


def _empty(like: Tensor, *, channels: int) -> Tensor:
    # whoever watches what is computed again was never shown this
    with _disable_current_modes():
        return like.new_empty(*like.shape[:-1], channels)


_PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
