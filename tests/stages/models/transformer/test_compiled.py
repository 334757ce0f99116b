"""`compile_blocks`: the plain path's losses and gradients, and few programs for many sizes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import SUPPORT
from tiny_transformer import TEXT_WIDTH, made_transformer, randomize
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from training import metrics, train

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.lora.sample_dropout import SampleDropout, drop_by_sample, seed_dropouts
from qedit.stages.models.memory_estimate.memory_plan import Recomputation
from qedit.stages.models.memory_saving.block_streaming import stream_blocks
from qedit.stages.models.memory_saving.recompute import recompute_blocks
from qedit.stages.models.quantization.quantize import precision_for
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.transformer.compiled import MOST_PROGRAMS, apply_rope_real, compile_blocks
from qedit.stages.models.transformer.side_by_side import apply_rope
from qedit.stages.models.transformer.transformer import Shown, predict_velocities
from qedit.stages.models.weights.streaming import fill

CPU = torch.device("cpu")
Weights = dict[str, nn.Parameter]
# Target, reference and text of five buckets, in latent pixels and tokens.
BUCKETS = ((8, 8, 7), (8, 12, 7), (6, 8, 9), (4, 16, 5), (12, 6, 11))
PROGRAMS = 2  # the first block, and the others
needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def trained(
    precision: str | None = None, *, zero_cond_t: bool = False
) -> tuple[nn.Module, Weights]:
    transformer = made_transformer(layers=3, zero_cond_t=zero_cond_t).requires_grad_(False)
    if precision:
        form = precision_for(precision, device=CPU)
        tensors = [(name, one.data) for name, one in transformer.named_parameters()]
        layers = quantize_layers(transformer, form)
        made = quantized_tensors(tensors, layers, form, dtype=torch.float32, via=CPU)
        fill(transformer, made, dtype=torch.float32, device=CPU, source=Path("made"))
    targets = target_modules(transformer, "attention")
    weights = add_lora(transformer, targets, rank=2, alpha=2.0, dropout=0.2, seed=1)
    randomize(weights)
    drop_by_sample(transformer)
    return transformer.train(), weights


def shown(height: int, width: int, text: int, *, lengths: tuple[int, ...] = ()) -> Shown:
    generator = torch.Generator().manual_seed(height)
    batch = len(lengths) or 1

    def latents() -> torch.Tensor:
        return torch.randn(batch, 16, height, width, generator=generator)

    return Shown(
        noisy=latents(),
        references=(latents(),),
        embeds=torch.randn(batch, text, TEXT_WIDTH, generator=generator),
        text_lengths=lengths or (text,),
        sigma=torch.full((batch,), 0.4),
    )


def step(transformer: nn.Module, weights: Weights, what: Shown) -> dict[str, torch.Tensor]:
    """The output and all gradients of one made-up step."""
    dropouts = [one for one in transformer.modules() if isinstance(one, SampleDropout)]
    assert dropouts
    seed_dropouts(dropouts, [np.random.default_rng(row) for row in range(len(what.sigma))])
    (predicted,) = predict_velocities(transformer, [what])
    torch.autograd.backward(predicted.square().mean())
    found = {"output": predicted.detach()}
    for name, weight in weights.items():
        assert weight.grad is not None, name
        found[name], weight.grad = weight.grad, None
    return found


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        largest = float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= 2e-5 * largest, name


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to the compiler, which gives it back as it is; and every call of it."""
    calls: list[Any] = []

    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            calls.append(given)
            return function(*given)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_what_is_compiled_gives_the_same_outputs_and_gradients(
    traced: list[Any], zero_cond_t: bool
) -> None:
    plain, changed = (trained(zero_cond_t=zero_cond_t) for _ in range(2))
    compile_blocks(changed[0])
    recompute_blocks(changed[0], Recomputation())
    expected, found = (step(*each, shown(8, 12, 7)) for each in (plain, changed))
    assert_alike(found, expected)
    # three blocks, each forward and again; compilers leave complex numbers alone
    assert len(traced) == 6
    assert not any(table.is_complex() for given in traced for table in given[4])


def test_there_may_be_more_programs_than_torch_allows_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, limits = torch._dynamo.config.recompile_limit, set()

    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            limits.add(torch._dynamo.config.recompile_limit)
            return function(*given)

        return called

    monkeypatch.setattr(torch, "compile", compile)
    changed = trained()
    compile_blocks(changed[0])
    recompute_blocks(changed[0], Recomputation())
    step(*changed, shown(8, 12, 7))
    assert limits == {MOST_PROGRAMS}
    assert torch._dynamo.config.recompile_limit == before


def test_padded_batches_are_run_as_without(traced: list[Any]) -> None:
    plain, changed = trained(), trained()
    compile_blocks(changed[0])
    padded = shown(8, 8, 7, lengths=(7, 4))
    expected, found = (step(*each, padded) for each in (plain, changed))
    assert traced == []
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_rotations_are_the_complex_ones(dtype: torch.dtype) -> None:
    states = torch.randn(2, 5, 3, 8).to(dtype)
    turns = torch.polar(torch.ones(5, 4), torch.randn(5, 4) * 3)
    found = apply_rope_real(states, torch.view_as_real(turns))
    assert found.dtype == dtype
    torch.testing.assert_close(found, apply_rope(states, turns))


def test_the_setting_compiles_what_is_trained(traced: list[Any], made: Any) -> None:
    runs = (
        made(output=str(on), train_batch_size=1, max_train_steps=2, compile_blocks=on)
        for on in (False, True)
    )
    losses = []
    for configuration in runs:
        before = len(traced)
        train(configuration)
        losses.append([line["loss"] for line in metrics(configuration) if "loss" in line])
        assert (len(traced) > before) == configuration.settings.compile_blocks
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def apart(call: str) -> None:
    """Run a function of this file where annotations are not checked: no compiler reads checks."""
    code = f"import test_compiled as here; here.{call}"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
    )


@pytest.mark.full
def test_five_buckets_ask_for_two_programs_without_a_break() -> None:
    apart("five_buckets()")


def five_buckets() -> None:
    """One for the first block, whose inputs need no gradient, and one for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    plain, changed = trained(), trained()
    compile_blocks(changed[0], backend=counter)
    recompute_blocks(changed[0], Recomputation())
    for bucket in BUCKETS:
        assert_alike(step(*changed, shown(*bucket)), step(*plain, shown(*bucket)))
    assert counter.frame_count == PROGRAMS
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("precision", "how", "streamed"),
    [
        (None, None, 0),
        (None, Recomputation(attention=2), 0),
        ("int8-quanto", Recomputation(kept=1, attention=2), 0),
        ("int4-quanto", Recomputation(inputs_to_host=True), 2),
    ],
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_a_compiler)])
def test_compiled_blocks_go_with_every_way_to_fit(
    backend: str, precision: str | None, how: Recomputation | None, streamed: int
) -> None:
    apart(f"one_way({backend!r}, {precision!r}, {'here.' if how else ''}{how!r}, {streamed})")


def one_way(backend: str, precision: str | None, how: Recomputation | None, streamed: int) -> None:
    torch._dynamo.reset()
    plain, changed = trained(precision), trained(precision)
    if streamed:
        stream_blocks(changed[0], streamed, device=CPU)
    compile_blocks(changed[0], backend=backend)
    if how:
        recompute_blocks(changed[0], how)
    for bucket in BUCKETS[:2]:
        assert_alike(step(*changed, shown(*bucket)), step(*plain, shown(*bucket)))
    assert not torch._dynamo.utils.counters["graph_break"]
