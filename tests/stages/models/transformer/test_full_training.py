"""model_type full: the model's own weights are trained, and saved as diffusers loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import Quiet
from safetensors.torch import load_file
from tiny_transformer import made_transformer, one_forward
from torch import Tensor
from training import metrics, train

from qedit.cache.errors import WrongUse
from qedit.config.loading import Configuration
from qedit.stages.models.transformer.full_training import train_weights
from qedit.stages.models.transformer.transformer import load_transformer
from qedit.stages.train import loop
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state.optimizers import make_optimizer

CPU = torch.device("cpu")
FULL: dict[str, Any] = {"model_type": "full", "learning_rate": 1e-4, "max_train_steps": 3}


def saved(configuration: Configuration) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in (configuration.settings.output_dir / "transformer").glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_full_run_resumes_and_is_saved_as_diffusers_loads_it(made: Any, precision: str) -> None:
    from diffusers import QwenImageTransformer2DModel

    settings = {**FULL, "mixed_precision": precision}
    whole = made(output="whole", **settings)
    train(whole)
    train(made(output="pieces", **{**settings, "max_train_steps": 2}))
    pieces = made(output="pieces", **settings)
    assert train(pieces).kept == 2
    one, other = saved(whole), saved(pieces)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line["loss"] for line in metrics(whole)] == [line["loss"] for line in metrics(pieces)]
    plan = make_plan(whole)
    trainer = loop.Trainer.load(plan, device=CPU)
    trainer.trained.restore(whole.settings.output_dir / "checkpoint-3")
    folder = whole.settings.output_dir / "transformer"
    kind: Any = QwenImageTransformer2DModel
    stock = kind.from_pretrained(str(folder), torch_dtype=trainer.objective.dtype)
    base = load_transformer(plan.checkpoint, dtype=trainer.objective.dtype, device="cpu")
    (batch,) = plan.feed.step(9)
    with torch.no_grad():
        ours, loaded, before = (
            trainer.objective.losses(one, batch) for one in (trainer.transformer, stock, base)
        )
    if precision == "bf16":
        assert torch.equal(loaded, ours)
    torch.testing.assert_close(loaded, ours, rtol=0.03, atol=0.01)
    assert (before - ours).abs().max() > 1e-3


def test_references_at_timestep_zero_stay_so_in_what_is_published(made: Any) -> None:
    """edit-v2+ trains over a checkpoint whose config says nothing of it; diffusers goes by it."""
    from diffusers import QwenImageTransformer2DModel

    configuration = made(flavour="edit-v2+", **{**FULL, "max_train_steps": 1})
    base = make_plan(configuration).checkpoint.transformer
    assert not json.loads((base / "config.json").read_text()).get("zero_cond_t")
    train(configuration)
    folder = configuration.settings.output_dir / "transformer"
    kind: Any = QwenImageTransformer2DModel
    assert kind.from_pretrained(str(folder)).config.zero_cond_t is True


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    """A thousandth of a bfloat16 step a time adds up in the masters."""
    transformer = made_transformer().to(torch.bfloat16).requires_grad_(False)
    weights = train_weights(transformer, ["proj_out"])
    master = weights["proj_out.weight"]
    own = transformer.get_parameter("proj_out.weight")
    assert (master.dtype, own.dtype) == (torch.float32, torch.bfloat16)
    before = own.detach().clone()
    one_forward(transformer).float().sum().backward()
    assert own.grad is None
    assert master.grad is not None
    with torch.no_grad():
        for _ in range(100):
            master.mul_(1 + 2.0**-12)  # a bfloat16 has 8 bits: alone, each would be lost
    assert torch.equal(own, before)  # taken over when it is used
    one_forward(transformer)
    assert torch.equal(own, master.to(torch.bfloat16))
    assert not torch.equal(own, before)


def test_a_block_takes_over_as_a_whole_before_it_computes() -> None:
    """Else what is compiled of a block would be cut at each of its layers."""
    transformer = made_transformer().to(torch.bfloat16).requires_grad_(False)
    weights = train_weights(transformer)
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        assert not any(one._forward_pre_hooks for one in block.modules() if one is not block)
    with torch.no_grad():
        for master in weights.values():
            master.mul_(2)
    one_forward(transformer)
    for name, master in weights.items():
        assert torch.equal(transformer.get_parameter(name), master.to(torch.bfloat16)), name


def test_a_step_by_the_gradient_of_another_process_alone_is_taken_over() -> None:
    """This one had no sample in that step: nothing went backward through its layers."""
    transformer = made_transformer().to(torch.bfloat16).requires_grad_(False)
    weights = train_weights(transformer, ["proj_out"])
    optimizer = make_optimizer(weights, learning_rate=0.1)
    assert optimizer.param_groups[0]["fused"]
    one_forward(transformer)
    for master in weights.values():
        master.grad = torch.ones_like(master)
    optimizer.step()
    one_forward(transformer)
    master, own = weights["proj_out.weight"], transformer.get_parameter("proj_out.weight")
    assert torch.equal(own, master.to(torch.bfloat16))


def test_gradients_of_masters_add_up_over_batches() -> None:
    transformer = made_transformer().to(torch.bfloat16).requires_grad_(False)
    weights = train_weights(transformer, ["proj_out"])
    one_forward(transformer).float().sum().backward()
    once = weights["proj_out.weight"].grad
    assert once is not None
    once = once.clone()
    one_forward(transformer).float().sum().backward()
    assert torch.equal(weights["proj_out.weight"].grad, 2 * once)  # type: ignore[arg-type]


def test_everything_that_is_trained_learns_and_nothing_else_does() -> None:
    transformer = made_transformer().requires_grad_(False)
    weights = train_weights(transformer)
    one_forward(transformer).square().sum().backward()
    idle = [name for name, one in weights.items() if one.grad is None or not bool(one.grad.any())]
    assert not idle
    other = made_transformer()
    one_forward(other).square().sum().backward()
    learns = {name for name, one in other.named_parameters() if one.grad is not None}
    learns = {name for name in learns if bool(other.get_parameter(name).grad.abs().sum() > 1e-6)}  # type: ignore[union-attr]
    assert learns <= set(weights)


def test_a_subset_is_trained_where_layers_are_named(made: Any) -> None:
    configuration = made(**FULL, lora_target_modules=["to_q", "proj_out"])
    train(configuration)
    base = load_file(
        next(Path(make_plan(configuration).checkpoint.transformer).glob("*.safetensors"))
    )
    changed = {
        name
        for name, tensor in saved(configuration).items()
        if not torch.equal(tensor, base[name].to(torch.bfloat16))
    }
    assert changed
    assert all(".to_q." in name or name.startswith("proj_out.") for name in changed)


def test_what_it_takes_is_said(made: Any) -> None:
    quiet = Quiet()
    loop.run(made(**{**FULL, "max_train_steps": 1}), quiet, device="cpu")
    assert any("billion weights" in line for line in quiet.said)


def test_a_transformer_of_somebody_else_is_never_replaced(made: Any) -> None:
    configuration = made(**FULL, output="mine")
    there = configuration.settings.output_dir / "transformer" / "config.json"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    with pytest.raises(WrongUse, match="would be replaced"):
        train(configuration)
    assert there.read_text() == "{}"
