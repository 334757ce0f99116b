"""LoRA files: diffusers' pipelines load each style, and any style becomes any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import qedit, said
from tiny_transformer import made_transformer, one_forward, randomize
from torch import nn

from qedit.cache.errors import WrongUse
from qedit.config.settings import Settings
from qedit.stages.models.lora.lora import add_lora, start_from, target_modules
from qedit.stages.models.lora.lora_file import Lora, LowRank, Style, as_file, lora_file, read_lora
from qedit.stages.train.state.initial_lora import read_initial_lora

PIPELINES = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
STYLES: tuple[Style, ...] = ("diffusers", "comfyui", "kohya")
OUTSIDE = ["img_in", "txt_in", "proj_out", "norm_out.linear", "linear_1", "linear_2"]


def stock_pipeline(name: str, transformer: nn.Module) -> object:
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "processor"))
    return getattr(diffusers, name)(scheduler=scheduler, transformer=transformer, **parts)


def trained(*, preset: str | list[str] = "attention", alpha: float = 10.0) -> Any:
    """A transformer with a LoRA of rank 4 that does something, and the LoRA's weights."""
    transformer = made_transformer()
    targets = target_modules(transformer, preset)
    weights = add_lora(transformer, targets, rank=4, alpha=alpha)
    randomize(weights)
    return transformer, weights


def written(path: Path, style: Style, *, alpha: float = 10.0, **about: Any) -> Path:
    _, weights = trained(alpha=alpha)
    path.write_bytes(lora_file(weights, rank=4, alpha=alpha, about=about, style=style))
    return path


def assert_stock_predicts(
    expected: torch.Tensor, file: Path, caplog: Any, *, weights: int, pipeline_name: str
) -> None:
    stock = made_transformer()
    base = one_forward(stock)
    pipeline: Any = stock_pipeline(pipeline_name, stock)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    # diffusers warns of missing and of unexpected keys; bitsandbytes, which PEFT imports, of a
    # package that a CPU does without
    assert not [record for record in caplog.records if "bitsandbytes" not in record.name]
    assert len([name for name, _ in stock.named_parameters() if "lora_" in name]) == weights
    assert (one_forward(stock) - expected).norm() < 1e-4 * expected.norm()
    assert (one_forward(stock) - base).norm() > 0.1 * base.norm()
    pipeline.unload_lora_weights()
    assert torch.equal(one_forward(stock), base)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("pipeline_name", "preset"),
    [(PIPELINES[0], "attention"), (PIPELINES[1], "all-linear+modulation"), (PIPELINES[1], OUTSIDE)],
)
@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_the_stock_pipeline_loads_the_file_and_predicts_the_same(
    tmp_path: Path, style: Style, pipeline_name: str, preset: Any, alpha: float, caplog: Any
) -> None:
    transformer, weights = trained(preset=preset, alpha=alpha)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(lora_file(weights, rank=4, alpha=alpha, about={}, style=style))
    assert_stock_predicts(
        one_forward(transformer), file, caplog, weights=len(weights), pipeline_name=pipeline_name
    )


@pytest.mark.parametrize("to", STYLES)
@pytest.mark.parametrize("source", [*STYLES, "bare"])
def test_any_style_becomes_any_other_to_the_same_effect(
    tmp_path: Path, source: str, to: Style, caplog: Any
) -> None:
    transformer, weights = trained(preset="all-linear+modulation")
    there = tmp_path / "there.safetensors"
    style: Any = "kohya" if source == "kohya" else "diffusers" if source == "bare" else source
    there.write_bytes(lora_file(weights, rank=4, alpha=10.0, about={"steps": 7}, style=style))
    if source == "bare":
        bare = load_file(there)
        save_file({name.removeprefix("transformer."): bare[name] for name in bare}, there)
    file = tmp_path / "exported.safetensors"
    result = said(qedit("export", str(there), "--format", to, "--to", str(file), "--json"))
    assert (result["format"], result["layers"]) == (to, len(weights) // 2)
    assert_stock_predicts(
        one_forward(transformer), file, caplog, weights=len(weights), pipeline_name=PIPELINES[1]
    )
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["lora_format"] == to
        assert opened.metadata().get("steps") == (None if source == "bare" else "7")


def test_there_and_back_gives_the_same_bytes(tmp_path: Path) -> None:
    for style in STYLES:
        file = written(tmp_path / f"{style}.safetensors", style, flavour="edit-v2")
        again = as_file(read_lora(file), style)
        assert again == file.read_bytes()


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("diffusers", ("transformer.proj_out.lora_A.weight", "transformer.proj_out.lora_B.weight")),
        (
            "comfyui",
            ("diffusion_model.proj_out.lora_A.weight", "diffusion_model.proj_out.lora_B.weight"),
        ),
        (
            "kohya",
            (
                "lora_unet_proj_out.alpha",
                "lora_unet_proj_out.lora_down.weight",
                "lora_unet_proj_out.lora_up.weight",
            ),
        ),
    ],
)
def test_names_and_alphas_are_those_the_tools_look_for(
    tmp_path: Path, style: Style, names: tuple[str, ...]
) -> None:
    """Folded where the loader would drop an alpha, and never both folded and written."""
    _, weights = trained(preset=["proj_out"], alpha=8.0)
    file = tmp_path / "lora.safetensors"
    file.write_bytes(lora_file(weights, rank=4, alpha=8.0, about={}, style=style))
    tensors = load_file(file)
    assert tuple(sorted(tensors)) == names
    up = weights["proj_out.lora_B.weight"]
    if style == "kohya":
        assert tensors["lora_unet_proj_out.alpha"].item() == 8.0
        assert torch.equal(tensors["lora_unet_proj_out.lora_up.weight"], up)
    else:
        assert torch.equal(tensors[names[-1]], 2 * up)


def test_an_alpha_that_only_diffusers_metadata_tell_is_read(tmp_path: Path) -> None:
    """As `save_lora_weights` writes it, beside weights that are not folded."""
    _, weights = trained()
    hidden = {
        "transformer.r": 4,
        "transformer.lora_alpha": 6.0,
        "transformer.alpha_pattern": {"transformer_blocks.1.attn.to_q": 2.0},
    }
    file = tmp_path / "saved.safetensors"
    save_file(
        {f"transformer.{name}": weight.data for name, weight in weights.items()},
        file,
        {"lora_adapter_metadata": json.dumps(hidden)},
    )
    lora = read_lora(file)
    assert lora.layers["transformer_blocks.0.attn.to_q"].scale == 6 / 4
    assert lora.layers["transformer_blocks.1.attn.to_q"].scale == 2 / 4
    folded = tmp_path / "folded.safetensors"
    folded.write_bytes(as_file(lora, "diffusers"))
    with safe_open(folded, "pt") as opened:
        assert "lora_adapter_metadata" not in opened.metadata()  # or it would count twice
    assert all(layer.scale == 1 for layer in read_lora(folded).layers.values())


@pytest.mark.parametrize(
    "hidden",
    ["[" * 9999, "{", "5", '{"transformer.lora_alpha": []}', '{"transformer.alpha_pattern": [1]}'],
)
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, hidden: str) -> None:
    file = tmp_path / "lora.safetensors"
    names = ("lora_A", "lora_B")
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.{name}.weight": torch.ones(4, 4) for name in names}
    save_file(tensors, file, {"lora_adapter_metadata": hidden})
    with pytest.raises(WrongUse, match="an alpha in it cannot be read"):
        read_lora(file)


def test_export_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    file = written(tmp_path / "lora.safetensors", "diffusers")
    before = file.read_bytes()

    def refused(source: Path, to: Path) -> str:
        arguments = ("export", str(source), "--format", "kohya", "--to", str(to))
        return qedit(*arguments, expect=2).stderr

    assert "there already" in refused(file, file)
    assert file.read_bytes() == before
    assert "/lora.safetensors`" in refused(file, tmp_path / "lora.pt")
    assert "/cats-v1.5.safetensors`" in refused(file, tmp_path / "cats-v1.5")
    assert f"`--to {tmp_path}/lora.safetensors`" in refused(file, tmp_path)
    assert "no LoRA file" in refused(tmp_path / "none", tmp_path / "new.safetensors")
    dora = tmp_path / "dora.safetensors"
    save_file({**load_file(file), "transformer.proj_out.dora_scale": torch.ones(1)}, dora)
    assert "proj_out.dora_scale" in refused(dora, tmp_path / "new.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "no safetensors" in refused(tmp_path / "text.safetensors", tmp_path / "new.safetensors")


# -- starting from a file --------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_begins_where_the_file_ended_at_any_alpha(tmp_path: Path, style: Style) -> None:
    done, weights = trained(alpha=10.0)
    file = tmp_path / "done.safetensors"
    file.write_bytes(lora_file(weights, rank=4, alpha=10.0, about={}, style=style))
    fresh = made_transformer()
    targets = target_modules(fresh, "joint-attention")  # more layers than the file has
    begun = add_lora(fresh, targets, rank=4, alpha=3.0)
    start_from(begun, read_lora(file), rank=4, alpha=3.0, source=str(file))
    torch.testing.assert_close(one_forward(fresh), one_forward(done), rtol=1e-5, atol=1e-5)


def test_a_lora_of_several_lower_ranks_begins_to_the_same_effect(tmp_path: Path) -> None:
    done = made_transformer()
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_k"]
    layers = {}
    for rank, name in zip((2, 3), names, strict=True):
        weights = add_lora(made_transformer(), [name], rank=rank, alpha=5.0)
        randomize(weights)
        down, up = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
        layers[name] = LowRank(down.detach(), up.detach(), 5.0)
        done.get_parameter(f"{name}.weight").data += (up @ down).detach() * 5.0 / rank
    file = tmp_path / "mixed.safetensors"
    file.write_bytes(as_file(Lora(layers, {}), "kohya"))
    lora = read_initial_lora(Settings(model_flavour="edit-v2", init_lora=str(file), lora_rank=8))
    assert lora is not None
    assert lora.ranks == {2, 3}
    fresh = made_transformer()
    begun = add_lora(fresh, target_modules(fresh, "attention"), rank=8, alpha=4.0, init="gaussian")
    start_from(begun, lora, rank=8, alpha=4.0, source=str(file))
    torch.testing.assert_close(one_forward(fresh), one_forward(done), rtol=1e-5, atol=1e-5)
    one_forward(fresh).square().sum().backward()
    up = begun[f"{names[0]}.lora_B.weight"]
    assert bool((up.grad[:, 2:] != 0).any())  # the rest can learn


def test_layers_that_are_not_trained_are_refused_by_name(tmp_path: Path) -> None:
    file = written(tmp_path / "lora.safetensors", "kohya")
    fresh = made_transformer()
    begun = add_lora(fresh, target_modules(fresh, ["to_k"]), rank=4, alpha=4.0)
    with pytest.raises(WrongUse, match=r"blocks\.0\.attn\.to_out\.0.*blocks\.0\.attn\.to_k"):
        start_from(begun, read_lora(file), rank=4, alpha=4.0, source="lora")
    fresh = made_transformer()
    begun = add_lora(fresh, target_modules(fresh, "attention"), rank=2, alpha=4.0)
    with pytest.raises(WrongUse, match=r"\[4, 32\].*\[2, 32\]"):
        start_from(begun, read_lora(file), rank=2, alpha=4.0, source="lora")


# -- metadata --------------------------------------------------------------------------------


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    transformer = made_transformer()
    weights = add_lora(transformer, ["proj_out"], rank=4, alpha=1.0)
    file = tmp_path / "lora.safetensors"
    about = {"flavour": "edit-v2", "targets": ["proj_out"], "zero_cond_t": False}
    file.write_bytes(lora_file(weights, rank=4, alpha=1.0, about=about))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == {
            "transformer.proj_out.lora_A.weight",
            "transformer.proj_out.lora_B.weight",
        }
    assert metadata["flavour"] == "edit-v2"
    assert {key: json.loads(metadata[key]) for key in ("rank", "alpha", "trained_scale")} == {
        "rank": 4,
        "alpha": 4,
        "trained_scale": 0.25,
    }
    assert json.loads(metadata["targets"]) == ["proj_out"]
