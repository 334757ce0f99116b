"""Recipes hold everything that decides a cached row, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_checkpoints import model_settings, opened

from qedit.cache.files.fingerprint import fingerprint
from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt_reader import PromptReader
from qedit.stages.stores.recipes import (
    as_begun,
    earlier,
    is_earlier,
    latent_recipe,
    prompt_recipe,
)

# -- recipes ---------------------------------------------------------------------------


def recipes(checkpoint: Checkpoint, folder: Path, **changed: str) -> tuple[str, str]:
    settings = model_settings(**changed)
    remember = folder / "digests.json"
    return (
        fingerprint(latent_recipe(checkpoint, settings, remember=remember)),
        fingerprint(prompt_recipe(checkpoint, settings, remember=remember)),
    )


def test_recipes_do_not_depend_on_where_the_model_lies(
    checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    assert recipes(opened(copied), tmp_path) == recipes(checkpoint, tmp_path)


def test_recipes_leave_out_flavour_and_areas(
    checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    (copied / "qedit.json").write_text('{"vae_area": 4096, "vl_area": 4096}')
    moved = opened(copied, "edit-v2+")
    assert moved.flavour.vae_area == 4096
    assert recipes(moved, tmp_path) == recipes(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("file", "latents_too"),
    [
        ("vae/diffusion_pytorch_model.safetensors", True),
        ("text_encoder/model.safetensors", False),
        ("processor/tokenizer.json", False),
        ("processor/preprocessor_config.json", False),
    ],
)
def test_another_encoder_is_another_recipe(
    file: str, latents_too: bool, checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    changed = copied / file
    if file.endswith("json"):
        written = json.loads(changed.read_text())
        written |= {"max_pixels": 784} if "config" in file else {"padding": {"strategy": "x"}}
        changed.write_text(json.dumps(written))
    else:
        weights = load_file(changed)
        name = sorted(weights)[0]
        save_file(weights | {name: weights[name] + 1}, changed, metadata={"format": "pt"})
    before, after = recipes(checkpoint, tmp_path), recipes(opened(copied), tmp_path)
    assert (before[0] != after[0]) == latents_too
    assert (before[1] != after[1]) == (not latents_too)


def test_the_processor_is_described_by_the_file_that_transformers_reads(
    copied: Path, tmp_path: Path
) -> None:
    """Of a processor that transformers 5 has saved, that is another one than before."""
    before = recipes(opened(copied), tmp_path)
    written = json.loads((copied / "processor/preprocessor_config.json").read_text())
    for mean, same in ((written["image_mean"], True), ([0.1, 0.2, 0.3], False)):
        nested = {"image_processor": written | {"image_mean": mean}}
        (copied / "processor/processor_config.json").write_text(json.dumps(nested))
        reader = PromptReader.load(opened(copied))
        assert list(reader._image_processor.image_mean) == list(mean)
        assert (recipes(opened(copied), tmp_path) == before) == same


def test_another_precision_is_another_recipe(checkpoint: Checkpoint, tmp_path: Path) -> None:
    usual = recipes(checkpoint, tmp_path)
    assert recipes(checkpoint, tmp_path, vae_dtype="bf16")[0] != usual[0]
    assert recipes(checkpoint, tmp_path, text_encoder_dtype="fp32")[1] != usual[1]
    eight_bits = recipes(checkpoint, tmp_path, text_encoder_precision="int8-quanto")
    assert eight_bits[0] == usual[0]
    assert eight_bits[1] != usual[1]


def test_one_picture_is_told_otherwise_in_edit_v1(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = replace(checkpoint.flavour, numbered_pictures=False)
    other = recipes(replace(checkpoint, flavour=plain), tmp_path)
    assert other[0] == recipes(checkpoint, tmp_path)[0]
    assert other[1] != recipes(checkpoint, tmp_path)[1]


def test_recipes_need_no_torch() -> None:
    code = "import sys, qedit.stages.stores.recipes; print('torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == "False"


# -- recipes that were replaced ----------------------------------------------------------


def test_a_run_goes_on_with_the_recipe_that_it_was_begun_with(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings, remember = model_settings(), tmp_path / "digests.json"
    for recipe in (
        latent_recipe(checkpoint, settings, remember=remember),
        prompt_recipe(checkpoint, settings, remember=remember),
    ):
        old = earlier(recipe)
        assert (is_earlier(old), is_earlier(recipe)) == (True, False)
        assert as_begun(recipe, fingerprint(old)) == old
        for begun in (None, fingerprint(recipe), "0" * 32):
            assert as_begun(recipe, begun) == recipe
        packed = {**recipe, "compression": "zstd"}
        assert as_begun(packed, fingerprint(old)) == {**old, "compression": "zstd"}
    assert old["processor"]["backend"] == "pil"


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("Qwen2VLImageProcessor", "torchvision"),
        ("Qwen2VLImageProcessorFast", "torchvision"),
        ("Qwen2VLImageProcessorPil", "pil"),
    ],
)
def test_the_processor_that_a_checkpoint_asks_for_stands_in_the_recipe(
    kind: str, backend: str, copied: Path, tmp_path: Path
) -> None:
    path = copied / "processor/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": kind}))
    recipe = prompt_recipe(opened(copied), model_settings(), remember=tmp_path / "digests.json")
    assert recipe["processor"]["backend"] == backend
