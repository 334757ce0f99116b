"""Mistakes that no training can begin with are refused before anything is cached."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import loaded, make_run, with_files
from tiny_transformer import made_transformer
from training import train

from qedit.cache.errors import WrongUse
from qedit.config.loading import load
from qedit.stages.models.checkpoint.checkpoint import part_config
from qedit.stages.models.lora.lora_file import Lora, LowRank, as_file
from qedit.stages.models.memory_estimate.dimensions import Dimensions
from qedit.stages.train.plan import refusals
from qedit.stages.train.plan.refusals import refuse_to_train
from qedit.stages.train.state.run_record import decisive

TO_Q = "transformer_blocks.0.attn.to_q"
IDLE = "transformer_blocks.1.attn.add_q_proj"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"))
    # a width of 64 and 2 blocks, as the tiny model has
    pairs = {
        "high": (TO_Q, 32, 64),
        "elsewhere": ("transformer_blocks.0.attn.add_q_proj", 4, 64),
        "wider": (TO_Q, 4, 80),
    }
    for name, (layer, rank, width) in pairs.items():
        lora = Lora({layer: LowRank(torch.ones(rank, width), torch.ones(64, rank), 4.0)}, {})
        (folder / f"{name}.safetensors").write_bytes(as_file(lora, "diffusers"))
    return folder


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "an argument that no such optimizer has": (
        {"optimizer_config": {"betaz": 1}},
        "`optimizer_config` does not fit AdamW: .*betaz",
        "such as betas or weight_decay",
    ),
    "a value that shows at the first step": (
        {"optimizer": "came", "optimizer_config": {"betas": [0.9, 0.95]}},
        "`optimizer_config` does not fit CAME",
        "arguments of came_pytorch.CAME",
    ),
    "a misspelt layer": (
        {"lora_target_modules": ["to_qq"]},
        "`lora_target_modules`: no layer .* `to_qq`. Did you mean `attn.to_q`",
        "Name a preset",
    ),
    "a layer that never learns": (
        {"lora_target_modules": ["to_q", IDLE]},
        f"`lora_target_modules`: {IDLE} never learns",
        "Take it out",
    ),
    "no such file": (
        {"init_lora": "nowhere.safetensors"},
        "There is no LoRA file nowhere.safetensors",
        "Give a .safetensors file",
    ),
    "too high a rank": (
        {"init_lora": "high.safetensors"},
        "`init_lora`: .*is of rank 32, and `lora_rank` is 16",
        "--set lora_rank=32",
    ),
    "a layer that is not trained": (
        {"init_lora": "elsewhere.safetensors"},
        "`init_lora`: .*add_q_proj, which is not among the 8 layers",
        "Set `lora_target_modules`",
    ),
    "a layer of another model": (
        {"init_lora": "wider.safetensors"},
        r"`init_lora`: .*lora_A.weight is \[4, 80\] .* and \[4, 64\] here",
        "Give a LoRA of this model",
    ),
    "no such checkpoint": (
        {"resume_from_checkpoint": "checkpoint-9"},
        "`resume_from_checkpoint` is checkpoint-9",
        "There are: none",
    ),
    "an option of another schedule": (
        {"lr_scheduler": "cosine", "lr_scheduler_config": {"num_cycles": 2}},
        "`lr_scheduler_config.num_cycles` is not an option of `lr_scheduler` cosine",
        "cosine_with_restarts takes it",
    ),
    "a LoKr with dropout": (
        {"lora_type": "lokr", "lora_dropout": 0.1},
        "`lora_dropout` drops inputs",
        "set it to 0",
    ),
}


def typed(settings: dict[str, Any]) -> list[str]:
    """The settings as options."""
    sets = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [word for one in sets for word in ("--set", one)]


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", ["run", "train --prepare", "train -n"])
def test_nothing_is_begun_with_a_mistake_in_the_training(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, mistake: str
) -> None:
    monkeypatch.chdir(run_folder)
    settings, said, remedy = MISTAKES[mistake]
    before = sorted(run_folder.rglob("*"))
    name, *options = command.split()
    result = with_files(name, *options, *typed(settings), expect=2)
    assert re.search(said, result.stderr)
    assert remedy in result.stderr
    assert sorted(run_folder.rglob("*")) == before


def test_what_the_device_cannot_compute_with_is_said_first(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder)
    settings = {"base_model_precision": "fp8-quanto", "quantize_activations": True}
    result = with_files("run", "--device", "cpu", *typed(settings), expect=2)
    assert "`quantize_activations` cannot run with fp8-quanto on cpu" in result.stderr
    assert not (run_folder / "caches").exists()


def test_a_run_that_has_all_its_steps_is_let_through(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_train_steps": 1, "use_ema": False}
    train(made(**settings))
    monkeypatch.setattr(refusals, "refuse_optimizer", lambda settings: 1 / 0)
    assert train(made(**settings)).kept == 1
    with pytest.raises(ZeroDivisionError):
        train(made(**{**settings, "max_train_steps": 2}))


@pytest.mark.parametrize("command", ["run", "run --dry-run", "train --prepare"])
def test_a_folder_of_another_training_is_refused_before_anything_is_cached(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(run_folder)
    name, *options = command.split()
    output, caches = tmp_path / "out", tmp_path / "caches"
    settings = {"output_dir": str(output), "cache_dir": str(caches)}
    checkpoint = output / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 1}')
    run = {"settings": decisive(loaded().settings)}
    (output / "run.json").write_text(
        json.dumps({**run, "model": {}, "recipes": {}, "datasets": {}})
    )
    rank = {"lora_rank": 5}
    told = with_files(name, *options, *typed({**settings, **rank}), expect=3).stderr
    assert "lora_rank: 16 there, 5 now" in told
    assert not caches.exists()
    (output / "run.json").unlink()
    (output / "checkpoint-2").mkdir()
    told = with_files(name, *options, *typed(settings), expect=3).stderr
    assert "what another trainer left: checkpoint-2" in told
    assert not caches.exists()


def test_layers_by_the_config_are_those_of_the_model(run_folder: Path) -> None:
    transformer = made_transformer()
    sizes = Dimensions.of_config(dict(transformer.config), zero_cond_t=False)  # type: ignore[call-overload]
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert sizes.linears() == linears


def test_a_full_run_names_its_layers_as_well(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder)
    files = Path("config.json"), Path("data.json")
    sets = ("model_type=full", 'lora_target_modules=["to_qq"]')
    assert part_config(load(*files).settings, "transformer")["num_layers"] == 2
    with pytest.raises(WrongUse, match="to_qq"):
        refuse_to_train(load(*files, sets=sets).settings)
    refuse_to_train(load(*files, sets=("model_type=full",)).settings)
