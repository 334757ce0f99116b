"""Bases in few bits: the formats, the layers, and the same base from disk and on the fly."""

from __future__ import annotations

import shutil
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quiet import Quiet
from tiny_checkpoints import relative
from torch import Tensor, nn
from training import lora, train

from qedit.cache.errors import NotComplete, WrongUse
from qedit.config.loading import Configuration
from qedit.stages.cache_base import quantizing
from qedit.stages.cache_base import stage as cache_base
from qedit.stages.frozen_base.modulation_table import base_folder
from qedit.stages.frozen_base.quantized import QUANTIZED_FILE, quantized_base
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.quantization import quantized_linear
from qedit.stages.models.quantization.quantize import (
    PRECISIONS,
    dequantized,
    group_length,
    packed_bits,
    precision_for,
    quantized,
    shapes_of,
    unpacked_bits,
)
from qedit.stages.models.quantization.quantized_linear import QuantizedLinear
from qedit.stages.stores.run import Run
from qedit.stages.train import loop, model
from qedit.stages.train.plan.training_plan import make_plan

CPU = torch.device("cpu")
# bitsandbytes takes seconds to import
EVERY_PRECISION = [
    pytest.param(name, marks=pytest.mark.full) if precision.needs else name
    for name, precision in PRECISIONS.items()
]


@pytest.fixture
def made(made: Any) -> Callable[..., Configuration]:
    """Runs in bfloat16 on a base in few bits, nothing of that cached yet; but for the first
    test there is a modulation table."""

    def make(precision: str = "int8-quanto", **settings: Any) -> Configuration:
        given = {"mixed_precision": "bf16", "base_model_precision": precision, "use_ema": False}
        configuration: Configuration = made(**{**given, **settings})
        return configuration

    for base in base_folder(make().settings).glob(f"*/{QUANTIZED_FILE}"):
        shutil.rmtree(base.parent)
    return make


def cached(configuration: Configuration, **options: Any) -> Any:
    return cache_base.run(Run(configuration), Quiet(), device="cpu", **options)


def weight(outputs: int = 48, inputs: int = 256, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers, a few of them far out, as trained weights are."""
    generator = torch.Generator().manual_seed(3)
    drawn = 0.02 * torch.randn(outputs, inputs, generator=generator)
    drawn[::7, ::31] *= 6
    return drawn.to(dtype)


def there_and_back(name: str, exact: Tensor) -> Tensor:
    tensors = quantized(exact, PRECISIONS[name])
    shape = (exact.shape[0], exact.shape[1])
    return dequantized(tensors, PRECISIONS[name], shape=shape, dtype=exact.dtype)


# -- formats ---------------------------------------------------------------------------------


def test_packed_levels_come_back() -> None:
    for bits in (4, 2):
        levels = torch.arange(4 * 64).reshape(4, 64).remainder(2**bits).to(torch.uint8)
        packed = packed_bits(levels, bits)
        assert packed.shape == (4, 64 * bits // 8)
        assert torch.equal(unpacked_bits(packed, bits), levels)


def test_groups_are_quantos() -> None:
    # 128 where it divides the inputs, else the next multiple of 32 that does, else all of them
    assert [group_length(inputs) for inputs in (3072, 12288, 192, 64, 100)] == [
        128,
        128,
        96,
        64,
        100,
    ]


@pytest.mark.parametrize("name", EVERY_PRECISION)
def test_a_weight_is_kept_in_as_many_bits_as_promised(name: str) -> None:
    precision, exact = PRECISIONS[name], weight()
    tensors = quantized(exact, precision)
    shapes = shapes_of(*exact.shape, precision)
    assert {one: tuple(tensor.shape) for one, tensor in tensors.items()} == shapes
    assert tensors["weight"].nbytes * 8 == precision.bits * exact.numel()
    assert not tensors["weight"].dtype.is_floating_point
    rest = sum(tensor.nbytes for one, tensor in tensors.items() if one != "weight")
    assert rest <= exact.numel() / 16 + 4 * len(exact)


@pytest.mark.full  # quanto takes seconds to import
@pytest.mark.parametrize("name", ["int8-quanto", "fp8-quanto", "int4-quanto", "int2-quanto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_further_from_the_weight_than_quanto_is(name: str, dtype: torch.dtype) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    kinds = {"int8": "qint8", "fp8": "qfloat8", "int4": "qint4", "int2": "qint2"}
    kind = getattr(quanto, kinds[name.partition("-")[0]])
    exact = weight(dtype=dtype)
    linear = nn.Linear(exact.shape[1], exact.shape[0], bias=False, dtype=dtype)
    linear.weight.data = exact
    theirs = quanto.QLinear.from_module(linear, weights=kind)
    options = {"axis": 0, "qtype": kind}
    if kind.bits == 8:
        made = quanto.quantize_weight(exact, scale=theirs.optimizer(exact, **options), **options)
    else:
        group = theirs.weight_group_size
        scale, shift = theirs.optimizer(exact, group_size=group, **options)
        levels = torch.ops.quanto.quantize_affine(exact, kind.bits, 0, group, scale, shift)
    if kind.bits == 8:
        reference = made.dequantize()
    else:
        reference = (levels.to(dtype) * scale - shift).reshape(exact.shape)
    ours = there_and_back(name, exact)
    assert relative(ours, exact) <= 1.01 * relative(reference, exact)
    assert relative(ours, reference) < relative(reference, exact)


@pytest.mark.full
def test_nf4_is_what_bitsandbytes_makes_of_it() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    exact = weight()
    bits, state = functional.quantize_4bit(exact, blocksize=64, quant_type="nf4")
    assert torch.equal(there_and_back("nf4-bnb", exact), functional.dequantize_4bit(bits, state))


@pytest.mark.parametrize("name", EVERY_PRECISION)
def test_a_weight_of_zeros_stays_zero(name: str) -> None:
    zeros = torch.zeros(16, 128, dtype=torch.bfloat16)
    assert torch.equal(there_and_back(name, zeros), zeros)


# -- layers ----------------------------------------------------------------------------------


def layers(name: str, **options: Any) -> tuple[nn.Linear, QuantizedLinear]:
    """A layer, and the same in few bits."""
    exact = nn.Linear(256, 48, dtype=torch.float32).requires_grad_(False)
    exact.weight.data = weight(dtype=torch.float32)
    layer = QuantizedLinear(exact, PRECISIONS[name], **options)
    for part, tensor in quantized(exact.weight, PRECISIONS[name]).items():
        if part == "weight":
            layer.weight = nn.Parameter(tensor, requires_grad=False)
        else:
            layer.register_buffer(part, tensor)
    return exact, layer


@pytest.mark.parametrize("name", EVERY_PRECISION)
def test_product_and_gradient_are_those_of_the_weight_in_full(name: str) -> None:
    _, layer = layers(name)
    full = layer.dequantized(torch.float32)
    input = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(1))
    ways = []
    for product in (layer, lambda x: nn.functional.linear(x, full, layer.bias)):
        leaf = input.clone().requires_grad_()
        output = product(leaf)
        output.square().sum().backward()
        ways.append((output.detach(), leaf.grad))
    assert all(torch.equal(one, other) for one, other in zip(*ways, strict=True))
    assert ways[0][0].shape == (2, 5, 48)


def test_nothing_of_full_size_is_kept_for_the_backward() -> None:
    _, layer = layers("int8-quanto")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        layer(torch.randn(2, 256, requires_grad=True))
    own = {tensor.data_ptr() for tensor in layer.tensors().values()}
    others = [tensor for tensor in kept if tensor.data_ptr() not in own]
    assert all(tensor.numel() < layer.in_features * layer.out_features for tensor in others)


def test_whole_numbers_are_multiplied_where_activations_are_quantised() -> None:
    exact, layer = layers("int8-quanto", quantizes_activations=True)
    _, plain = layers("int8-quanto")
    input = torch.randn(3, 7, 256, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = layer(input)
    assert relative(found.detach(), exact(input).detach()) < 0.02
    assert not torch.equal(found, plain(input))
    (gradient,) = torch.autograd.grad(found.sum(), input)
    (expected,) = torch.autograd.grad(plain(input).sum(), input)
    assert torch.equal(gradient, expected)


# -- what cannot run -------------------------------------------------------------------------


def test_a_device_that_cannot_compute_it_is_refused_before_anything_is_loaded(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fp8-quanto", "nf4-bnb"):
        with pytest.raises(WrongUse, match=f"{name}.*mps"):
            precision_for(name, device="mps")
    with pytest.raises(WrongUse, match=r"quantize_activations.*int4-quanto on cuda"):
        precision_for("int4-quanto", device="cuda", quantizes_activations=True)
    assert precision_for("int8-quanto", device="cuda:1", quantizes_activations=True).bits == 8
    monkeypatch.setattr(model, "empty_transformer", lambda *args, **named: 1 / 0)
    with pytest.raises(WrongUse, match="quantize_activations"):
        loop.Trainer.load(
            make_plan(made("int4-quanto", quantize_activations=True, mixed_precision="no")),
            device=CPU,
        )
    with pytest.raises(WrongUse, match="quantize_activations"):
        cached(made("fp8-quanto", quantize_activations=True))


def test_weights_are_quantised_where_quantize_via_says(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the base is read to the host because it is streamed; and there it is refused
    by what it is computed on."""
    used: list[str] = []

    class Seen(Exception):
        pass

    def seeing(*args: Any, via: torch.device, **named: Any) -> Any:
        used.append(via.type)
        raise Seen

    monkeypatch.setattr(model, "quantized_tensors", seeing)
    monkeypatch.setattr(quantizing, "quantized_tensors", seeing)
    monkeypatch.setattr(quantizing, "best_device", lambda device: torch.device("meta"))
    for via in ("cpu", "accelerator"):
        configuration = made(mixed_precision="no", quantize_via=via)
        with pytest.raises(Seen):
            model.open_model(make_plan(configuration), device=CPU, computes_on=torch.device("meta"))
        with pytest.raises(Seen):
            cached(configuration)
    assert used == ["cpu", "cpu", "meta", "meta"]
    streamed = make_plan(made("fp8-quanto", mixed_precision="no"))
    with pytest.raises(WrongUse, match="cannot run on mps"):
        model.open_model(streamed, device=CPU, computes_on=torch.device("mps"))


def test_a_missing_package_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(WrongUse, match="bitsandbytes") as refused:
        precision_for("nf4-bnb", device="cpu")
    assert "pip install 'qedit[nf4]'" in refused.value.do


def test_training_asks_for_the_table_that_a_base_in_few_bits_needs(made: Any) -> None:
    configuration = made()
    shutil.rmtree(base_folder(configuration.settings), ignore_errors=True)
    with pytest.raises(NotComplete, match="modulation table") as refused:
        train(configuration)
    assert "`qedit cache-base`" in refused.value.do
    cached(configuration)
    make_plan(configuration)


# -- runs ------------------------------------------------------------------------------------


def tensors_of(trainer: loop.Trainer) -> dict[str, Tensor]:
    module = trainer.transformer
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize("name", EVERY_PRECISION)
def test_the_cached_base_is_the_base_quantised_on_the_fly(made: Any, name: str) -> None:
    configuration = made(name)
    cached(configuration)
    plan = make_plan(configuration)
    base = quantized_base(open_checkpoint(configuration.settings), configuration.settings)
    assert base.is_there()
    assert set(base.files()) == {path.name for path in base.folder.glob("*.safetensors")}
    from_disk = tensors_of(loop.Trainer.load(plan, device=CPU))
    shutil.rmtree(base.folder)
    on_the_fly = tensors_of(loop.Trainer.load(plan, device=CPU))
    assert from_disk.keys() == on_the_fly.keys()
    for one, tensor in from_disk.items():
        assert tensor.dtype == on_the_fly[one].dtype, one
        assert torch.equal(tensor, on_the_fly[one]), one


@pytest.mark.parametrize("name", EVERY_PRECISION)
def test_the_loss_stays_close_and_the_lora_learns(made: Any, name: str) -> None:
    losses = {}
    for precision in ("no_change", name):
        configuration = made(precision)
        cached(configuration)
        plan = make_plan(configuration)
        trainer = loop.Trainer.load(plan, device=CPU)
        (batch,) = plan.feed.step(1)
        found = trainer.objective.losses(trainer.transformer, batch)
        torch.autograd.backward(found.sum())
        losses[precision] = found.detach()
    far = {"int2-quanto": 0.5, "int4-quanto": 0.15, "nf4-bnb": 0.15}.get(name, 0.03)
    assert relative(losses[name], losses["no_change"]) < far
    assert not torch.equal(losses[name], losses["no_change"])
    grads = [weight.grad for weight in trainer.trained.weights.values()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)
    assert any(bool(grad.abs().sum() > 0) for grad in grads if grad is not None)


def test_a_run_on_a_quantised_base_ends_in_a_lora_and_resumes(made: Any) -> None:
    whole, pieces = (
        made(output="whole", max_train_steps=3),
        made(output="pieces", max_train_steps=2),
    )
    cached(whole)
    train(whole)
    train(pieces)
    longer = made(output="pieces", max_train_steps=3)
    assert train(longer).kept == 2
    one, other = lora(whole), lora(longer)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_modulation_is_quantised_too_where_no_table_can_stand_for_it(made: Any) -> None:
    configuration = made(mixed_precision="no")
    outcome = cached(configuration)
    assert outcome.wanted == 1
    trainer = loop.Trainer.load(make_plan(configuration), device=CPU)
    layer = trainer.transformer.get_submodule("transformer_blocks.0.img_mod.1")
    assert isinstance(layer, QuantizedLinear)
    assert not isinstance(trainer.transformer.get_submodule("norm_out.linear"), QuantizedLinear)


def test_a_killed_cache_base_leaves_no_base_and_the_next_makes_it(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = made()
    base = quantized_base(open_checkpoint(configuration.settings), configuration.settings)
    calls = []

    def killed(weight: Tensor, precision: Any) -> dict[str, Tensor]:
        calls.append(weight.shape)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return quantized(weight, precision)

    with monkeypatch.context() as patch:
        patch.setattr(quantized_linear, "quantized", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(configuration)
    assert not base.is_there()
    again = cached(configuration)
    assert (again.computed, base.is_there()) == (1, True)
    assert cached(configuration).computed == 0


@pytest.mark.parametrize("way", ["on the fly", "into the cache"])
def test_memory_never_holds_two_copies(
    made: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a tensor is quantised, those that were read before it are gone."""
    configuration = made(mixed_precision="no")
    plan = make_plan(configuration)
    sources: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watching(weight: Tensor, precision: Any) -> dict[str, Tensor]:
        alive.append(sum(one() is not None for one in sources))
        sources.append(weakref.ref(weight))
        return quantized(weight, precision)

    monkeypatch.setattr(quantized_linear, "quantized", watching)
    if way == "on the fly":
        loop.Trainer.load(plan, device=CPU)
    else:
        cached(configuration)
    assert len(alive) > 20
    assert max(alive) <= 1
