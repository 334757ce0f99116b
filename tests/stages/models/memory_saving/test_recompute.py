"""Recomputed blocks, inputs kept in host memory, streamed weights: the same bits as without."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformer import TEXT_WIDTH, made_transformer, randomize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.memory_estimate.memory_plan import Recomputation
from qedit.stages.models.memory_saving import offload, recompute
from qedit.stages.models.memory_saving.block_streaming import BlockStreaming, spread, stream_blocks
from qedit.stages.models.memory_saving.offload import HostMemory
from qedit.stages.models.memory_saving.recompute import recompute_blocks
from qedit.stages.models.quantization.quantize import precision_for
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.transformer.transformer import predict_velocity
from qedit.stages.models.weights.streaming import fill

LAYERS = 5
CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
Gradients = dict[str, torch.Tensor]


def trained_transformer(
    *, zero_cond_t: bool = False, dropout: float = 0.0, device: torch.device = CPU
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    transformer = made_transformer(layers=LAYERS, zero_cond_t=zero_cond_t)
    transformer.requires_grad_(False)
    targets = target_modules(transformer, "joint-attention")
    weights = add_lora(transformer, targets, rank=2, alpha=2.0, dropout=dropout, seed=1)
    randomize(weights)
    return transformer.to(device).train(), weights


def step(transformer: nn.Module, weights: dict[str, nn.Parameter]) -> tuple[float, Gradients]:
    """Loss and gradients of one made-up step."""
    device = next(iter(weights.values())).device
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 16, 8, 8, generator=generator).to(device)
    reference = torch.randn(2, 16, 6, 8, generator=generator).to(device)
    text = torch.randn(2, 7, TEXT_WIDTH, generator=generator).to(device)
    sigma = torch.tensor([0.3, 0.8]).to(device)
    torch.manual_seed(9)
    predicted = predict_velocity(transformer, latents, [reference], text, mask=None, sigma=sigma)
    loss = predicted.square().mean()
    torch.autograd.backward(loss)
    gradients = {}
    for name, weight in weights.items():
        assert weight.grad is not None, name
        gradients[name] = weight.grad.clone()
        weight.grad = None
    return float(loss.detach()), gradients


@cache
def plainly(device: torch.device = CPU, **made: Any) -> tuple[float, Gradients]:
    """Loss and gradients of `step` where nothing is recomputed or streamed."""
    return step(*trained_transformer(device=device, **made))


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == expected[0]
    for name, gradient in expected[1].items():
        assert torch.equal(found[1][name], gradient), name


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        Recomputation(),
        Recomputation(kept=2),
        Recomputation(attention=LAYERS),
        Recomputation(attention=2),
        Recomputation(inputs_to_host=True),
        Recomputation(attention=3, inputs_to_host=True),
        Recomputation(kept=2, attention=2, inputs_to_host=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_recomputed_blocks_give_the_same_bits(
    how: Recomputation, zero_cond_t: bool, device: torch.device
) -> None:
    made = {"zero_cond_t": zero_cond_t, "dropout": 0.2}
    changed = trained_transformer(device=device, **made)
    recompute_blocks(changed[0], how)
    assert_same(step(*changed), plainly(device, **made))


@pytest.mark.parametrize("kept", [0, 2, LAYERS])
def test_only_the_kept_blocks_are_run_once(kept: int) -> None:
    transformer, weights = trained_transformer()
    recompute_blocks(transformer, Recomputation(kept=kept))
    runs = [0] * LAYERS
    for index, block in enumerate(transformer.transformer_blocks):  # type: ignore[arg-type]

        def count(module: nn.Module, inputs: Any, index: int = index) -> None:
            runs[index] += 1

        block.register_forward_pre_hook(count)
    step(transformer, weights)
    assert runs == [2] * (LAYERS - kept) + [1] * kept


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        (Recomputation(), 2 * LAYERS),
        (Recomputation(attention=LAYERS), LAYERS),
        (Recomputation(attention=2), 2 * LAYERS - 2),
        (Recomputation(kept=1, attention=2), 2 * LAYERS - 3),
        (Recomputation(attention=2, inputs_to_host=True), 2 * LAYERS - 2),
    ],
    ids=repr,
)
def test_attention_that_is_kept_is_not_computed_again(how: Recomputation, calls: int) -> None:
    transformer, weights = trained_transformer()
    recompute_blocks(transformer, how)
    seen = 0

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal seen
            name = str(function)
            seen += "scaled_dot_product" in name and "backward" not in name
            return function(*args, **(kwargs or {}))

    with Counting():
        step(transformer, weights)
    assert seen == calls


def test_inputs_of_blocks_lie_on_the_host_between_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memories: list[HostMemory] = []
    most = 0

    class Watched(HostMemory):
        def __init__(self) -> None:
            super().__init__()
            memories.append(self)

        def take(self, held: offload.HostCopy) -> torch.Tensor:
            nonlocal most
            most = max(most, len(self))
            return super().take(held)

    monkeypatch.setattr(recompute, "HostMemory", Watched)
    transformer, weights = trained_transformer()
    recompute_blocks(transformer, Recomputation(inputs_to_host=True))
    step(transformer, weights)
    (memory,) = memories
    # the image and the text states of each block, and nothing else
    assert most == 2 * LAYERS
    assert len(memory) == 0


def test_host_memory_gives_back_what_was_put_and_brings_the_block_below() -> None:
    memory = HostMemory()
    values = [torch.randn(3, 4) for _ in range(6)]
    held = [memory.put(value.clone()) for value in values]
    # the upper block's image, then its text: both of the block below are under way by then
    for place in (4, 5):
        assert torch.equal(memory.take(held[place]), values[place])
    assert [one.back is not None for one in held[:4]] == [False, False, True, True]
    for place in (2, 3, 0, 1):
        assert torch.equal(memory.take(held[place]), values[place])
    assert len(memory) == 0


def test_nothing_is_kept_of_blocks_below_the_first_that_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put: list[torch.Size] = []
    real = HostMemory.put

    def watched(self: HostMemory, tensor: torch.Tensor) -> offload.HostCopy:
        put.append(tensor.shape)
        return real(self, tensor)

    monkeypatch.setattr(HostMemory, "put", watched)
    transformer = made_transformer(layers=LAYERS).requires_grad_(False)
    targets = target_modules(transformer, [f"transformer_blocks.{LAYERS - 2}.attn.to_q"])
    weights = add_lora(transformer, targets, rank=2, alpha=2.0, seed=1)
    randomize(weights)
    recompute_blocks(transformer.train(), Recomputation(inputs_to_host=True))
    step(transformer, weights)
    assert len(put) == 2 * 2


def test_streamed_blocks_are_spread() -> None:
    assert spread(60, 60) == list(range(60))
    assert spread(60, 4) == [7, 22, 37, 52]
    assert spread(5, 0) == []


@pytest.mark.parametrize("streamed", [1, LAYERS])
@pytest.mark.parametrize(
    "how",
    [None, Recomputation(inputs_to_host=True), Recomputation(attention=2)],
    ids=repr,
)
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_streamed_blocks_give_the_same_bits(
    streamed: int, how: Recomputation | None, device: torch.device
) -> None:
    changed = trained_transformer(device=device)
    stream_blocks(changed[0], streamed, device=device)
    if how:
        recompute_blocks(changed[0], how)
    for _ in range(2):
        assert_same(step(*changed), plainly(device))


def trained_in_few_bits(precision: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    transformer = made_transformer(layers=LAYERS).requires_grad_(False)
    tensors = [(name, one.data) for name, one in transformer.named_parameters()]
    form = precision_for(precision, device=CPU)
    layers = quantize_layers(transformer, form)
    made = quantized_tensors(tensors, layers, form, dtype=torch.float32, via=CPU)
    fill(transformer, made, dtype=torch.float32, device=CPU, source=Path("made"))
    targets = target_modules(transformer, "attention")
    weights = add_lora(transformer, targets, rank=2, alpha=2.0, seed=1)
    randomize(weights)
    return transformer.train(), weights


@cache
def plainly_in_few_bits(precision: str) -> tuple[float, Gradients]:
    return step(*trained_in_few_bits(precision))


@pytest.mark.parametrize("precision", ["int8-quanto", "int4-quanto"])
@pytest.mark.parametrize(
    "how", [Recomputation(inputs_to_host=True), Recomputation(attention=LAYERS)], ids=repr
)
def test_streamed_weights_may_be_of_few_bits(how: Recomputation, precision: str) -> None:
    expected, changed = plainly_in_few_bits(precision), trained_in_few_bits(precision)
    stream_blocks(changed[0], 3, device=CPU)
    streamed = changed[0].get_submodule("transformer_blocks.0.attn.to_k.base_layer")
    assert [*streamed.parameters(), *streamed.buffers()] == []
    recompute_blocks(changed[0], how)
    for _ in range(2):
        assert_same(step(*changed), expected)


@pytest.mark.parametrize("precision", [None, "int8-quanto"])
def test_nothing_holds_weights_that_were_let_go(
    precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[weakref.ref[Any]] = []
    real: Callable[..., Any] = BlockStreaming._bring

    def bring(self: BlockStreaming, index: int) -> Any:
        coming = real(self, index)
        memory = coming.buffer.numpy().copy()
        brought.append(weakref.ref(memory))
        coming.buffer = torch.from_numpy(memory)  # it lives as long as any view of it
        return coming

    monkeypatch.setattr(BlockStreaming, "_bring", bring)
    transformer, weights = trained_in_few_bits(precision) if precision else trained_transformer()
    stream_blocks(transformer, LAYERS, device=CPU)
    recompute_blocks(transformer, Recomputation())
    there: list[int] = []
    for block in transformer.transformer_blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(
            lambda *_: there.append(sum(one() is not None for one in brought))
        )
    step(transformer, weights)
    assert max(there) == 2


def test_streamed_weights_are_on_the_device_only_while_they_are_used() -> None:
    transformer, weights = trained_transformer()
    frozen = sum(one.nbytes for one in transformer.parameters() if not one.requires_grad)
    blocks = list(transformer.transformer_blocks)  # type: ignore[arg-type]
    in_blocks = sum(
        one.nbytes for block in blocks for one in block.parameters() if not one.requires_grad
    )
    streaming = stream_blocks(transformer, LAYERS, device=CPU)
    recompute_blocks(transformer, Recomputation())
    left = sum(one.nbytes for one in transformer.parameters() if not one.requires_grad)
    assert left == frozen - in_blocks
    most = 0

    def watch(module: nn.Module, inputs: Any) -> None:
        nonlocal most
        most = max(most, streaming.device_bytes)

    for block in blocks:
        block.register_forward_pre_hook(watch)
    step(transformer, weights)
    assert 0 < most <= 2 * 1.2 * in_blocks / LAYERS
    assert not any("weight" in vars(module) for module in streaming.modules())


def test_each_pass_brings_a_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[int] = []
    real: Callable[..., Any] = BlockStreaming._bring

    def bring(self: BlockStreaming, index: int) -> Any:
        brought.append(index)
        return real(self, index)

    monkeypatch.setattr(BlockStreaming, "_bring", bring)
    transformer, weights = trained_transformer()
    stream_blocks(transformer, LAYERS, device=CPU)
    recompute_blocks(transformer, Recomputation())
    step(transformer, weights)
    # up, and down again: the last block's are still there when the backward begins
    assert brought == [0, 1, 2, 3, 4, 3, 2, 1, 0]
