"""DoRA and LoKr under ComfyUI's names, and baked in: each computes what PEFT trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import qedit, said
from tiny_transformer import made_transformer, one_forward, randomize
from torch import Tensor, nn

from qedit.cache.errors import WrongUse
from qedit.stages.export.lora_files import export_lora
from qedit.stages.export.merge import merge_lora
from qedit.stages.models.lora.adapter_file import adapter_file
from qedit.stages.models.lora.adapter_reading import read_adapter
from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.lora.lora_file import LORA_FILE, lora_file

PREFIX = "diffusion_model."


def trained(
    folder: Path,
    kind: str,
    *,
    rank: int = 4,
    style: Any = "diffusers",
    base: nn.Module | None = None,
) -> tuple[nn.Module, Path]:
    """A transformer with a trained adapter of alpha unequal to its rank, and its file."""
    transformer = made_transformer()
    targets = target_modules(transformer, "all-linear")
    weights = add_lora(transformer, targets, rank=rank, alpha=rank / 2, kind=kind)
    randomize(weights)
    for name, weight in weights.items():
        if "magnitude" in name:
            weight.data = 1.3 + weight.data.abs()
    file = folder / LORA_FILE
    file.parent.mkdir(exist_ok=True)
    about = {"base": "made", "flavour": "edit-v2", "zero_cond_t": False}
    facts: Any = {"rank": rank, "alpha": rank / 2, "about": about, "style": style}
    write = lora_file if kind == "lora" else partial(adapter_file, kind)
    file.write_bytes(write(weights, **facts))
    return transformer, file


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint" / "transformer"
    made_transformer().save_pretrained(folder)  # type: ignore[operator]
    return folder


def in_peft(transformer: nn.Module, layer: str) -> Tensor:
    """The layer's weight with the adapter in it, as PEFT computes it."""
    module: Any = transformer.get_submodule(layer)
    module.merge()
    merged: Tensor = module.base_layer.weight.detach().clone()
    module.unmerge()
    return merged


def in_comfyui(weight: Tensor, tensors: dict[str, Tensor], layer: str) -> Tensor:
    """ComfyUI's formula: dora_scale / (||W|| + eps) * (W + BA), norms of the base's rows."""
    down, up = (tensors[f"{PREFIX}{layer}.lora_{letter}.weight"] for letter in "AB")
    norms = weight.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps
    return tensors[f"{PREFIX}{layer}.dora_scale"] / norms * (weight + up @ down)


def test_a_dora_for_comfyui_computes_there_what_peft_trained(base: Path, tmp_path: Path) -> None:
    transformer, file = trained(tmp_path, "dora")
    to = tmp_path / "comfyui.safetensors"
    words = ("--format", "comfyui", "--base", str(base.parent), "--to", str(to), "--json")
    assert said(qedit("export", str(file), *words))["layers"] == len(read_adapter(file).layers)
    tensors, stock = load_file(to), made_transformer()
    layers = target_modules(stock, "all-linear")
    assert {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors} >= set(layers)
    for layer in layers:
        weight = stock.get_parameter(f"{layer}.weight")
        assert tensors[f"{PREFIX}{layer}.dora_scale"].shape == (weight.shape[0], 1)
        expected = in_peft(transformer, layer)
        torch.testing.assert_close(
            in_comfyui(weight, tensors, layer), expected, rtol=1e-5, atol=1e-6
        )
    with safe_open(to, "pt") as opened:
        assert opened.metadata()["lora_format"] == "comfyui"
        assert opened.metadata()["loads_in"].startswith("ComfyUI")


def test_a_row_of_zeros_stays_one(tmp_path: Path) -> None:
    empty = made_transformer()
    name = "transformer_blocks.0.attn.to_v"
    empty.get_parameter(f"{name}.weight").data[3:5] = 0
    empty.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    weights = add_lora(empty, [name], rank=2, alpha=2.0, kind="dora")
    for key, weight in weights.items():
        if "magnitude" not in key:
            weight.data.zero_()
    file, to = tmp_path / LORA_FILE, tmp_path / "to.safetensors"
    file.write_bytes(adapter_file("dora", weights, rank=2, alpha=2.0, about={}))
    export_lora(file, to, "comfyui", base=tmp_path / "base")
    assert bool(load_file(to)[f"{PREFIX}{name}.dora_scale"].isfinite().all())
    merge_lora(file, tmp_path / "base", tmp_path / "merged")
    merged = load_file(next((tmp_path / "merged").glob("*.safetensors")))[f"{name}.weight"]
    assert not bool(merged[3:5].any())


@pytest.mark.parametrize("style", ["diffusers", "comfyui"])
@pytest.mark.parametrize("rank", [4, 32])
def test_a_lokr_changes_its_names_alone(style: Any, rank: int, tmp_path: Path) -> None:
    other = "comfyui" if style == "diffusers" else "diffusers"
    _, file = trained(tmp_path, "lokr", rank=rank, style=other)
    to = tmp_path / "other.safetensors"
    export_lora(file, to, style)
    prefixes = {"diffusers": "transformer.", "comfyui": PREFIX}
    before = {
        name.removeprefix(prefixes[other]): tensor for name, tensor in load_file(file).items()
    }
    after = load_file(to)
    assert {name.removeprefix(prefixes[style]) for name in after} == set(before)
    assert all(name.startswith(prefixes[style]) for name in after)
    for name, tensor in before.items():
        assert torch.equal(after[prefixes[style] + name], tensor)
    if style == "diffusers":
        stock = made_transformer()
        stock.load_lora_adapter(str(to), prefix="transformer")  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["dora", "lokr"])
@pytest.mark.parametrize("rank", [4, 32])
def test_an_adapter_baked_in_is_what_peft_trained(
    kind: str, rank: int, base: Path, tmp_path: Path
) -> None:
    transformer, file = trained(tmp_path, kind, rank=rank)
    to = tmp_path / "merged"
    qedit("export", str(file), "--merge", "--base", str(base), "--to", str(to))
    merged = load_file(next(to.glob("*.safetensors")))
    for layer in target_modules(made_transformer(), "all-linear"):
        expected = in_peft(transformer, layer).to(torch.bfloat16)
        torch.testing.assert_close(merged[f"{layer}.weight"], expected, rtol=0.01, atol=1e-3)


def test_the_alpha_of_a_lokr_from_elsewhere_counts(base: Path, tmp_path: Path) -> None:
    """LyCORIS: alpha / rank where a matrix is of low rank, else 1."""
    layer = "transformer_blocks.0.attn.to_q"
    weight = made_transformer().get_parameter(f"{layer}.weight").detach()
    out, into = weight.shape
    one = torch.randn(2, 2)
    down, up = torch.randn(3, into // 2), torch.randn(out // 2, 3)
    tensors = {"lokr_w1": one, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": torch.tensor(1.5)}
    file = tmp_path / "elsewhere.safetensors"
    save_file({f"{PREFIX}{layer}.{name}": value for name, value in tensors.items()}, file)
    added = read_adapter(file).layers[layer].merged(weight) - weight
    expected = 0.5 * torch.kron(one, up @ down)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_written_is_refused_with_what_to_type(base: Path, tmp_path: Path) -> None:
    _, dora = trained(tmp_path / "dora", "dora")
    _, lokr = trained(tmp_path / "lokr", "lokr")
    to = tmp_path / "to.safetensors"
    with pytest.raises(WrongUse, match="norms") as caught:
        export_lora(dora, to, "comfyui")
    assert "--base" in str(caught.value.do)
    for file, style, given, words in (
        (dora, "kohya", None, "kohya"),
        (lokr, "kohya", None, "kohya"),
        (lokr, "comfyui", base, "--base"),
        (dora, "diffusers", base, "--base"),
    ):
        with pytest.raises(WrongUse, match=words):
            export_lora(file, to, style, base=given)  # type: ignore[arg-type]
    small = tmp_path / "small"
    made_transformer(layers=1).save_pretrained(small)  # type: ignore[operator]
    with pytest.raises(WrongUse, match="has not"):
        export_lora(dora, to, "comfyui", base=small)
    export_lora(dora, to, "comfyui", base=base)
    with pytest.raises(WrongUse, match="dora_scale"):
        export_lora(to, tmp_path / "again.safetensors", "diffusers")
    tensors = load_file(lokr)
    incomplete = {
        name: tensor for name, tensor in tensors.items() if "0.attn.to_q.lokr_w1" not in name
    }
    save_file(incomplete, tmp_path / "incomplete.safetensors")
    with pytest.raises(WrongUse, match=r"0.attn.to_q .*incomplete"):
        read_adapter(tmp_path / "incomplete.safetensors")


@pytest.mark.parametrize("kind", ["dora", "lokr"])
def test_an_alpha_that_is_no_number_is_refused(kind: str, tmp_path: Path) -> None:
    _, file = trained(tmp_path, kind)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    save_file({**load_file(file), f"{layer}.alpha": torch.ones(2)}, file)
    with pytest.raises(WrongUse, match=r"alpha|to_q"):
        read_adapter(file)


def test_one_file_for_comfyui_holds_the_merged_transformer(tmp_path: Path) -> None:
    """The names are diffusers' own; one tensor more says that references stand at t = 0."""
    for flavour, zero in (("edit-v2", False), ("edit-v2+", True), ("edit-v3", True)):
        folder = tmp_path / flavour
        made_transformer(zero_cond_t=zero).save_pretrained(folder / "base")  # type: ignore[operator]
        transformer, file = trained(folder, "lora")
        to = folder / "model.safetensors"
        words = ("--merge", "--format", "comfyui", "--base", str(folder / "base"), "--to", str(to))
        result = qedit("export", str(file), *words)
        assert "ComfyUI/models/diffusion_models" in " ".join(result.output.split())
        tensors = load_file(to)
        marker = tensors.pop("__index_timestep_zero__", None)
        assert (marker is not None) is zero
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        stock = made_transformer(zero_cond_t=zero, dtype=torch.bfloat16)
        stock.load_state_dict(tensors)
        layer = "transformer_blocks.1.attn.to_out.0"
        expected = in_peft(transformer, layer).to(torch.bfloat16)
        torch.testing.assert_close(tensors[f"{layer}.weight"], expected, rtol=0.01, atol=1e-3)
        assert one_forward(stock).isfinite().all()


def test_an_edit_v2_plus_lora_marks_the_merged_file_over_a_base_that_says_nothing(
    base: Path, tmp_path: Path
) -> None:
    transformer = made_transformer()
    weights = add_lora(transformer, ["proj_out"], rank=2, alpha=2.0)
    about = {"flavour": "edit-v2+", "zero_cond_t": True}
    (tmp_path / LORA_FILE).write_bytes(lora_file(weights, rank=2, alpha=2.0, about=about))
    to = tmp_path / "model.safetensors"
    merge_lora(tmp_path / LORA_FILE, base, to, for_comfyui=True)
    assert "__index_timestep_zero__" in load_file(to)


def test_a_whole_transformer_becomes_one_file(tmp_path: Path) -> None:
    for zero in (False, True):
        folder = tmp_path / str(zero)
        made = made_transformer(zero_cond_t=zero, dtype=torch.bfloat16)
        made.save_pretrained(folder / "transformer")  # type: ignore[operator]
        to = folder / "model.safetensors"
        words = ("--format", "comfyui", "--to", str(to), "--json")
        assert said(qedit("export", str(folder), *words))["where"] == str(to)
        tensors = load_file(to)
        assert ("__index_timestep_zero__" in tensors) is zero
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensors[name], tensor)
        qedit("export", str(folder), *words, expect=2)
