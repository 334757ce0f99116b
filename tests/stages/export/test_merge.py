"""A LoRA baked into a transformer: the folder predicts what base and LoRA predict together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import qedit, said
from tiny_transformer import made_transformer, one_forward, randomize
from torch import nn

from qedit.cache.errors import WrongUse
from qedit.stages.export.merge import merge_lora
from qedit.stages.models.checkpoint.digests import model_digest
from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.lora.lora_file import LORA_FILE, lora_file
from qedit.stages.models.weights.transformer_folder import write_transformer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint that has nothing but a transformer."""
    folder = tmp_path / "checkpoint"
    made_transformer().to(torch.bfloat16).save_pretrained(folder / "transformer")  # type: ignore[operator]
    return folder


def saved_lora(
    folder: Path, *, preset: str | list[str] = "all-linear", **about: Any
) -> tuple[nn.Module, Path]:
    """A transformer with a trained LoRA of alpha unequal to its rank, and its file."""
    transformer = made_transformer().to(torch.bfloat16)
    weights = add_lora(transformer, target_modules(transformer, preset), rank=4, alpha=2.0)
    randomize(weights)
    about = {"flavour": "edit-v2", "base": "made", "steps": 3, "zero_cond_t": False, **about}
    (folder / LORA_FILE).write_bytes(lora_file(weights, rank=4, alpha=2.0, about=about))
    return transformer, folder / LORA_FILE


def loaded(folder: Path) -> Any:
    from diffusers import QwenImageTransformer2DModel

    kind: Any = QwenImageTransformer2DModel
    return kind.from_pretrained(str(folder), torch_dtype=torch.bfloat16)


def test_the_folder_loads_in_diffusers_and_holds_the_sums(base: Path, tmp_path: Path) -> None:
    trained, file = saved_lora(tmp_path)
    to = tmp_path / "merged"
    result = said(
        qedit("export", str(file), "--merge", "--base", str(base), "--to", str(to), "--json")
    )
    assert (result["merged"], result["where"]) == (True, str(to))
    stock = loaded(to)
    before = made_transformer().to(torch.bfloat16)
    changed = set(target_modules(before, "all-linear"))
    assert result["layers"] == len(changed)
    for name, linear in before.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        now = stock.get_parameter(f"{name}.weight")
        if name not in changed:
            assert torch.equal(now, linear.weight), name
            continue
        adapter: Any = trained.get_submodule(name)
        added = adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight * 0.5
        expected = (linear.weight.float() + added).to(torch.bfloat16)
        torch.testing.assert_close(now, expected, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(one_forward(stock), one_forward(trained), rtol=0.1, atol=0.3)
    assert (one_forward(stock) - one_forward(before)).abs().max() > 1


def test_references_stay_at_timestep_zero_where_the_base_says_nothing_of_it(
    base: Path, tmp_path: Path
) -> None:
    """edit-v2+ trains over a checkpoint whose config has no zero_cond_t."""
    _, file = saved_lora(tmp_path, flavour="edit-v2+", zero_cond_t=True)
    to = tmp_path / "merged"
    merge_lora(file, base, to)
    assert not json.loads((base / "transformer/config.json").read_text())["zero_cond_t"]
    assert json.loads((to / "config.json").read_text())["zero_cond_t"] is True
    stock = loaded(to)
    assert stock.config.zero_cond_t
    stock.zero_cond_t = False
    for block in stock.transformer_blocks:
        block.zero_cond_t = False
    assert not torch.allclose(one_forward(stock), one_forward(loaded(to)), atol=0.1)


def test_another_base_than_the_one_it_was_trained_on_is_told(base: Path, tmp_path: Path) -> None:
    digest = model_digest(base / "transformer", remember=None)
    for place, (of, is_told) in enumerate(((digest, False), ("0" * 32, True))):
        _, file = saved_lora(tmp_path, base_digest=of)
        to = tmp_path / f"merged-{place}"
        result = qedit("export", str(file), "--merge", "--base", str(base), "--to", str(to))
        told = "was trained on other weights" in " ".join(result.stderr.split())
        assert told is is_told
        assert ("on edit-v2, made" in " ".join(result.stderr.split())) is is_told


def test_files_are_cut_and_named_by_an_index(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("qedit.stages.models.weights.transformer_folder.FILE_BYTES", 20_000)
    _, file = saved_lora(tmp_path)
    merge_lora(file, base / "transformer", tmp_path / "merged")
    index = json.loads((tmp_path / "merged" / f"{NAME}.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "merged").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 3
    assert one_forward(loaded(tmp_path / "merged")).isfinite().all()


NAME = "diffusion_pytorch_model"


def test_what_cannot_be_merged_is_refused_and_nothing_is_left(base: Path, tmp_path: Path) -> None:
    _, file = saved_lora(tmp_path)
    to = tmp_path / "merged"
    with pytest.raises(WrongUse, match="no transformer"):
        merge_lora(file, tmp_path / "nowhere", to)
    with pytest.raises(WrongUse, match="is there already"):
        merge_lora(file, base, base)
    small = tmp_path / "small"
    made_transformer(layers=1).save_pretrained(small)  # type: ignore[operator]
    with pytest.raises(WrongUse, match=r"layers that .* has not"):
        merge_lora(file, small, to)
    config = json.loads((base / "transformer/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "transformer/config.json").write_text(json.dumps(config))
    with pytest.raises(WrongUse, match="quantised"):
        merge_lora(file, base, to)
    assert not to.exists()
    assert not list(tmp_path.glob(".*"))
    for words in (["--merge"], ["--merge", "--base", str(base), "--format", "kohya"], []):
        qedit("export", str(file), *words, "--to", str(to), expect=2)


def test_a_kill_in_the_middle_leaves_no_folder(tmp_path: Path) -> None:
    def tensors() -> Any:
        yield "a", torch.zeros(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_transformer(tmp_path / "to", tensors(), config={}, about={})
    assert list(tmp_path.iterdir()) == []
