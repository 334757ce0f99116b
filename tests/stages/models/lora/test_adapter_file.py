"""DoRA, LoKr, PiSSA and OLoRA: exact starts, exact resumes, and files that load as they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_checkpoints import opened
from tiny_transformer import made_transformer, one_forward, randomize
from torch import Tensor, nn
from training import LORA, lora, train

from qedit.cache.errors import Damaged, WrongUse
from qedit.cache.files.fingerprint import fingerprint
from qedit.config.loading import Configuration
from qedit.stages.models.lora.adapter_file import LOADS_IN, adapter_file
from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.tiny.tiny import TEXT_WIDTH, make_tiny
from qedit.stages.models.transformer.transformer import load_transformer, predict_velocity
from qedit.stages.models.weights.tensor_file import write_tensors
from qedit.stages.train import loop
from qedit.stages.train.model import open_model
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state.initial_lora import (
    START_FILE,
    read_initial_weights,
    write_initial_weights,
)

CPU = torch.device("cpu")
KINDS = ("dora", "lokr")
SHORT: dict[str, Any] = {"max_train_steps": 3, "use_ema": False}


def pipeline_with(transformer: nn.Module) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline

    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "processor"))
    return QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **parts
    )


def load_as_it_says(transformer: nn.Module, file: Path) -> None:
    """Load `file` the way its metadata name for diffusers."""
    with safe_open(file, "pt") as opened:
        kind = opened.metadata()["adapter"]
        assert opened.metadata()["loads_in"] == LOADS_IN[kind]
    if kind == "dora":
        pipeline_with(transformer).load_lora_weights(str(file))
    else:
        transformer.load_lora_adapter(str(file), prefix="transformer")  # type: ignore[operator]


# -- DoRA and LoKr ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [4, 32])
def test_a_fresh_adapter_changes_nothing_and_its_file_loads_in_diffusers(
    kind: str, rank: int, tmp_path: Path
) -> None:
    transformer = made_transformer()
    before = one_forward(transformer)
    targets = target_modules(transformer, "all-linear")
    weights = add_lora(transformer, targets, rank=rank, alpha=rank / 2, kind=kind)
    assert torch.equal(one_forward(transformer), before)
    randomize(weights)
    for name, weight in weights.items():
        if "magnitude" in name:  # a norm: what it is, but for a third
            weight.data = 1.3 + weight.data.abs()
    trained = one_forward(transformer)
    file = tmp_path / LORA
    data = adapter_file(kind, weights, rank=rank, alpha=rank / 2, about={"base": "made"})
    file.write_bytes(data)
    assert adapter_file(kind, weights, rank=rank, alpha=rank / 2, about={"base": "made"}) == data
    stock = made_transformer()
    load_as_it_says(stock, file)
    torch.testing.assert_close(one_forward(stock), trained, rtol=1e-4, atol=1e-5)
    assert (trained - before).abs().max() > 0.1


def test_rows_of_zeros_of_a_dora_begin_exactly_learn_and_load(tmp_path: Path) -> None:
    """Everybody divides by the norms of its rows."""

    def base() -> nn.Module:
        transformer = made_transformer()
        transformer.get_parameter(f"{name}.weight").data[3:9] = 0
        return transformer

    name = "transformer_blocks.0.attn.to_v"
    transformer = base()
    before = one_forward(transformer)
    weights = add_lora(transformer, [name], rank=4, alpha=4.0, kind="dora", seed=2)
    output = one_forward(transformer)
    torch.testing.assert_close(output, before, rtol=0, atol=1e-6)
    output.square().sum().backward()
    norms = weights[f"{name}.lora_magnitude_vector.weight"]
    assert all(bool(weight.grad.isfinite().all()) for weight in weights.values())
    assert bool((norms.grad[3:9] != 0).all())
    norms.data -= 0.1 * norms.grad
    trained = one_forward(transformer)
    file = tmp_path / LORA
    file.write_bytes(adapter_file("dora", weights, rank=4, alpha=4.0, about={"base": "made"}))
    stock = base()
    load_as_it_says(stock, file)
    torch.testing.assert_close(one_forward(stock), trained, rtol=1e-4, atol=1e-5)


def test_the_tiny_model_that_sees_trains_a_dora(tmp_path: Path) -> None:
    checkpoint = opened(make_tiny(tmp_path / "model", "edit-v2", sighted=True))
    transformer = load_transformer(checkpoint, dtype=torch.float32, device="cpu")
    targets = target_modules(transformer, "all-linear")
    weights = add_lora(transformer, targets, rank=4, alpha=4.0, kind="dora")
    picture, text = torch.ones(1, 16, 4, 4), torch.ones(1, 3, TEXT_WIDTH)
    sigma = torch.tensor([0.5])
    predict_velocity(transformer, picture, [picture], text, mask=None, sigma=sigma).sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in weights.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_another_kind_resumes_and_predicts_what_its_file_does(
    made: Any, kind: str
) -> None:
    settings = {"lora_type": kind, "lora_alpha": 2.0, "learning_rate": 0.05, **SHORT}
    whole = made(output="whole", **settings)
    train(whole)
    train(made(output="pieces", **{**settings, "max_train_steps": 2}))
    pieces = made(output="pieces", **settings)
    assert train(pieces).kept == 2
    one, other = lora(whole), lora(pieces)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert_file_predicts_what_training_does(whole, load_as_it_says, close=1e-4)


def test_names_of_a_lokr_are_those_that_comfyui_reads() -> None:
    """comfy/weight_adapter/lokr.py: <layer>.lokr_w1, lokr_w2, or each as _a and _b."""
    transformer = made_transformer()
    weights = add_lora(transformer, ["proj_out"], rank=2, alpha=2.0, kind="lokr")
    tensors = load_tensors(
        adapter_file("lokr", weights, rank=2, alpha=2.0, about={}, style="comfyui")
    )
    ends = {"lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}
    for name in tensors:
        prefix, _, end = name.rpartition(".")
        assert (prefix, end in ends) == ("diffusion_model.proj_out", True)


@pytest.mark.parametrize(
    ("kind", "style"), [("dora", "comfyui"), ("dora", "kohya"), ("lokr", "kohya")]
)
def test_names_that_no_reader_of_the_kind_knows_are_refused_at_once(
    made: Any, kind: str, style: str
) -> None:
    with pytest.raises(WrongUse, match=f'lora_format.*is "{style}", and no such tool'):
        made(lora_type=kind, lora_format=style)


def load_tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(data)


# -- starts that are a part of the base ------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "precision"),
    [
        ("pissa", "no"),
        ("olora", "bf16"),
        pytest.param("pissa", "bf16", marks=pytest.mark.full),
        pytest.param("olora", "no", marks=pytest.mark.full),
    ],
)
def test_a_start_out_of_the_base_is_resumed_exactly_and_subtracted_in_the_file(
    made: Any, init: str, precision: str
) -> None:
    settings = {
        "lora_init_type": init,
        "lora_alpha": 2.0,
        "learning_rate": 0.02,
        "mixed_precision": precision,
        **SHORT,
    }
    whole = made(output="whole", **settings)
    train(whole)
    train(made(output="pieces", **{**settings, "max_train_steps": 2}))
    pieces = made(output="pieces", **settings)
    assert train(pieces).kept == 2
    one, other = lora(whole), lora(pieces)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with safe_open(whole.settings.output_dir / LORA, "pt") as file:
        assert json.loads(file.metadata()["rank"]) == 2 * whole.settings.lora_rank
    if precision == "no":
        assert_file_predicts_what_training_does(whole)


def test_a_damaged_start_out_of_the_base_is_refused_and_without_it_the_run_goes_on(
    made: Any,
) -> None:
    settings = {"lora_init_type": "olora", "learning_rate": 0.02, **SHORT}
    whole = made(output="whole", **settings)
    train(whole)
    train(made(output="pieces", **{**settings, "max_train_steps": 2}))
    pieces = made(output="pieces", **settings)
    start = pieces.settings.output_dir / "lora-start.safetensors"
    before = start.read_bytes()
    flip(start, -1)
    with pytest.raises(Damaged, match=r"start.* is not as it was written") as refusal:
        train(pieces)
    assert refusal.value.do.startswith(f"Delete {start} and run")
    start.unlink()
    assert train(pieces).kept == 2
    assert start.read_bytes() == before
    one, other = lora(whole), lora(pieces)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("init", ["gaussian", "pissa", "olora"])
def test_the_file_of_a_dora_predicts_what_training_did_however_it_began(
    made: Any, init: str
) -> None:
    settings = {"lora_type": "dora", "lora_init_type": init, "lora_alpha": 2.0, **SHORT}
    whole = made(output="whole", learning_rate=0.02, **settings)
    train(whole)
    train(made(output="pieces", learning_rate=0.02, **{**settings, "max_train_steps": 2}))
    pieces = made(output="pieces", learning_rate=0.02, **settings)
    assert train(pieces).kept == 2
    one, other = lora(whole), lora(pieces)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert_file_predicts_what_training_does(whole)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_rows_of_zeros_are_no_start_of_a_dora(init: str) -> None:
    transformer, name = made_transformer(), "transformer_blocks.0.attn.to_v"
    transformer.get_parameter(f"{name}.weight").data[3:9] = 0
    with pytest.raises(WrongUse, match=f"`lora_init_type` {init} .* {name} has rows of zeros"):
        add_lora(transformer, [name], rank=4, alpha=4.0, init=init, kind="dora")
    weights = add_lora(transformer, [name], rank=4, alpha=4.0, init=init)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def load_in_pipeline(transformer: nn.Module, file: Path) -> None:
    pipeline_with(transformer).load_lora_weights(file.parent)


def assert_file_predicts_what_training_does(
    configuration: Configuration,
    load: Callable[[nn.Module, Path], None] = load_in_pipeline,
    *,
    close: float = 1e-3,
) -> None:
    plan = make_plan(configuration)
    trainer = loop.Trainer.load(plan, device=CPU)
    where = configuration.settings.output_dir
    trainer.trained.restore(where / "checkpoint-3")
    stock = load_transformer(plan.checkpoint, dtype=torch.float32, device="cpu")
    (batch,) = plan.feed.step(9)
    with torch.no_grad():
        ours = trainer.objective.losses(trainer.transformer, batch)
        base = trainer.objective.losses(stock, batch)
        load(stock, where / LORA)
        loaded = trainer.objective.losses(stock, batch)
    torch.testing.assert_close(loaded, ours, rtol=close, atol=close / 10)
    assert (base - ours).abs().max() > 10 * close


def test_what_a_lora_began_as_is_found_by_the_rule_that_lets_a_run_go_on(tmp_path: Path) -> None:
    run = {"settings": {"seed": 1, "loss_type": "l2"}, "model": {}, "recipes": {}, "datasets": {}}
    weights = {"proj_out.lora_A.weight": torch.nn.Parameter(torch.randn(2, 3))}
    # kept before there was such a setting, which now has its default
    write_initial_weights(tmp_path, weights, run={**run, "settings": {"seed": 1}})
    kept = read_initial_weights(tmp_path, run=run)
    assert kept is not None
    assert torch.equal(kept["proj_out.lora_A.weight"], weights["proj_out.lora_A.weight"])
    for other in ({"seed": 2, "loss_type": "l2"}, {"seed": 1, "loss_type": "huber"}):
        assert read_initial_weights(tmp_path, run={**run, "settings": other}) is None
    # the first files named their run by a fingerprint alone
    write_tensors(tmp_path / START_FILE, weights, metadata={"run": fingerprint(run)})
    assert read_initial_weights(tmp_path, run=run) is not None
    assert read_initial_weights(tmp_path, run={**run, "model": {"zero_cond_t": True}}) is None


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_is_what_it_is_called(init: str) -> None:
    """Formulas of arXiv 2404.02948 and 2406.01775."""
    transformer, rank = made_transformer(), 4
    name = "transformer_blocks.0.attn.to_q"
    weight = transformer.get_parameter(f"{name}.weight").detach().clone()
    before = one_forward(transformer)
    weights = add_lora(transformer, [name], rank=rank, alpha=float(rank), init=init)
    product = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
    if init == "pissa":
        left, values, right = torch.linalg.svd(weight)
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    else:
        orthogonal, triangular = torch.linalg.qr(weight)
        expected = orthogonal[:, :rank] @ triangular[:rank]
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one_forward(transformer), before, rtol=1e-4, atol=1e-4)


def test_of_several_processes_one_alone_keeps_what_the_lora_began_as(made: Any) -> None:
    configuration = made(lora_init_type="olora", use_ema=False)
    plan, kept = make_plan(configuration), configuration.settings.output_dir / START_FILE
    second = open_model(plan, device=CPU, writes=False)[1]
    assert not kept.exists()
    first = open_model(plan, device=CPU)[1]
    assert kept.is_file()
    assert all(torch.equal(first[name], weight) for name, weight in second.items())


def test_a_file_to_begin_with_and_another_start_are_refused(made: Any) -> None:
    before = made(output="before", use_ema=False, max_train_steps=1)
    train(before)
    file = str(before.settings.output_dir / LORA)
    assert load_file(file)
    for settings in ({"lora_init_type": "olora"}, {"lora_type": "dora"}):
        with pytest.raises(WrongUse, match="`init_lora`"):
            train(made(output="after", init_lora=file, use_ema=False, **settings))


# -- what a file says of itself --------------------------------------------------------------


@pytest.mark.parametrize("style", ["diffusers", "comfyui", "kohya"])
def test_a_published_file_says_what_it_is_and_how_it_was_made(made: Any, style: str) -> None:
    configuration = made(lora_format=style, lora_alpha=1.0, max_train_steps=1, use_ema=False)
    train(configuration)
    with safe_open(configuration.settings.output_dir / LORA, "pt") as file:
        said = file.metadata()
    plan = make_plan(configuration)
    assert said["base"] == plan.checkpoint.source
    assert said["base_digest"] == plan.run["model"]["transformer"]
    assert (said["flavour"], said["zero_cond_t"]) == ("edit-v2", "false")
    assert (said["targets"], said["rank"]) == ("attention", "4")
    assert float(said["alpha"]) == (1.0 if style == "kohya" else 4.0)  # folded in, or as it is
    assert json.loads(said["trained_scale"]) == 0.25
    assert json.loads(said["steps"]) == 1
    training = json.loads(said["training"])
    assert (training["learning_rate"], training["optimizer"]) == (0.01, "adamw")
    spec = {name for name in said if name.startswith("modelspec.")}
    needed = ("sai_model_spec", "architecture", "implementation", "title")
    assert {f"modelspec.{name}" for name in needed} <= spec
    assert said["modelspec.architecture"] == "Qwen-Image-Edit-2509/lora"
