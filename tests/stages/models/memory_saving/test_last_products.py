"""The last products of a recomputed block are kept: the same bits with and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformer import TEXT_WIDTH, made_transformer, randomize
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.memory_estimate.memory_plan import Recomputation
from qedit.stages.models.memory_saving.recompute import recompute_blocks
from qedit.stages.models.quantization.quantize import precision_for
from qedit.stages.models.quantization.quantized_linear import (
    QuantizedLinear,
    quantize_layers,
    quantized_tensors,
)
from qedit.stages.models.transformer.full_training import train_weights
from qedit.stages.models.transformer.transformer import Shown, predict_velocities
from qedit.stages.models.weights.streaming import fill

LAYERS, WIDTH = 3, 32
CPU = torch.device("cpu")
IMAGE_GATE, BOTH_GATES = ("attn.to_q", "img_mod.1"), ("attn.to_q", "img_mod.1", "txt_mod.1")
Weights = dict[str, nn.Parameter]


def trained(
    targets: str | Sequence[str] = "attention",
    *,
    dtype: torch.dtype = torch.float32,
    zero_cond_t: bool = False,
    precision: str | None = None,
) -> tuple[nn.Module, Weights]:
    transformer = made_transformer(layers=LAYERS, zero_cond_t=zero_cond_t, dtype=dtype)
    transformer.requires_grad_(False)
    if precision:
        form = precision_for(precision, device=CPU)
        tensors = [(name, one.data) for name, one in transformer.named_parameters()]
        layers = quantize_layers(transformer, form)
        made = quantized_tensors(tensors, layers, form, dtype=dtype, via=CPU)
        fill(transformer, made, dtype=dtype, device=CPU, source=Path("made"))
    if targets == "full":
        return transformer.train(), train_weights(transformer)
    names = target_modules(transformer, targets)
    weights = add_lora(transformer, names, rank=2, alpha=2.0, dropout=0.2, seed=1)
    randomize(weights)
    return transformer.train(), weights


def step(
    transformer: nn.Module, weights: Weights, *, lengths: tuple[int, ...] = (7, 7)
) -> dict[str, Tensor]:
    """The loss and all gradients of one made-up step."""
    dtype = next(one.dtype for one in transformer.parameters() if one.is_floating_point())
    generator = torch.Generator().manual_seed(3)
    what = Shown(
        noisy=torch.randn(2, 16, 8, 8, generator=generator).to(dtype),
        references=(torch.randn(2, 16, 6, 8, generator=generator).to(dtype),),
        embeds=torch.randn(2, max(lengths), TEXT_WIDTH, generator=generator).to(dtype),
        text_lengths=lengths,
        sigma=torch.tensor([0.3, 0.8]),
    )
    torch.manual_seed(9)
    (predicted,) = predict_velocities(transformer, [what])
    loss = predicted.float().square().mean()
    torch.autograd.backward(loss)
    found = {"loss": loss.detach()}
    for name, weight in weights.items():
        assert weight.grad is not None, name
        found[name], weight.grad = weight.grad, None
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Products(TorchDispatchMode):
    """Counts products with the last matrix of an MLP; those of gradients have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.addmm.default:
            self.count += args[-1].shape == (4 * WIDTH, WIDTH)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "zero_cond_t"),
    [
        (torch.bfloat16, True),
        (torch.float32, False),
        pytest.param(torch.bfloat16, False, marks=pytest.mark.full),
        pytest.param(torch.float32, True, marks=pytest.mark.full),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("targets", "again"),
    [("attention", 0), ("attention+mlp", 1), (IMAGE_GATE, 1), (BOTH_GATES, 2), ("full", 2)],
    ids=str,
)
def test_the_last_products_are_computed_again_only_where_they_are_looked_at(
    targets: Any, again: int, zero_cond_t: bool, dtype: torch.dtype
) -> None:
    """`again`: of how many of a block's two streams."""
    made = {"zero_cond_t": zero_cond_t, "dtype": dtype}
    expected = step(*trained(targets, **made))
    transformer, weights = trained(targets, **made)
    recompute_blocks(transformer, Recomputation())
    with Products() as products:
        found = step(transformer, weights)
    assert_same(found, expected)
    assert products.count == LAYERS * (2 + again)


@pytest.mark.parametrize(
    "how",
    [
        Recomputation(attention=LAYERS),
        Recomputation(kept=1, attention=1),
        Recomputation(inputs_to_host=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("lengths", [(7, 7), (7, 4)], ids=["alike", "padded"])
def test_nothing_else_changes_with_it(how: Recomputation, lengths: tuple[int, ...]) -> None:
    expected = step(*trained(), lengths=lengths)
    transformer, weights = trained()
    recompute_blocks(transformer, how)
    for _ in range(2):
        with Products() as products:
            found = step(transformer, weights, lengths=lengths)
        assert_same(found, expected)
        assert products.count == 2 * LAYERS
    # as they were: the next forward, an evaluation, asks for every product
    assert not any("forward" in vars(one) for one in transformer.modules())


@pytest.mark.parametrize("precision", ["int8-quanto", "int4-quanto"])
def test_a_matrix_in_few_bits_is_not_even_written_out_again(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = step(*trained(precision=precision))
    transformer, weights = trained(precision=precision)
    recompute_blocks(transformer, Recomputation(attention=2))
    real, seen = QuantizedLinear.product, []

    def counted(layer: QuantizedLinear, input: Tensor, tensors: Any) -> Tensor:
        seen.append(layer.in_features)
        return real(layer, input, tensors)

    monkeypatch.setattr(QuantizedLinear, "product", counted)
    assert_same(step(transformer, weights), expected)
    assert seen.count(4 * WIDTH) == 2 * LAYERS
