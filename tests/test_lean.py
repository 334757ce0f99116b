"""A finished training process has opened no picture and holds no VAE, no encoder, none of our
picture code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from small_run import make_run, with_files

TRAINING = """
import json, os, sys
opened = []
def hook(event, details):
    if event in ("open", "os.open") and isinstance(details[0], (str, bytes)):
        opened.append(os.path.relpath(os.fsdecode(details[0])))
sys.addaudithook(hook)
from click.testing import CliRunner
from qedit.pipeline.cli import main
arguments = ["train", "--config", "config.json", "--data", "data.json"]
result = CliRunner().invoke(main, arguments)
assert result.exit_code == 0, result.output
print(json.dumps({"opened": opened, "modules": sorted(sys.modules)}))
"""
FORBIDDEN = (
    "qedit.stages.images",
    "qedit.stages.read_ahead",
    "qedit.stages.pair",
    "qedit.stages.cache_vae",
    "qedit.stages.cache_embeds",
    "qedit.stages.models.vae",
    "qedit.stages.models.prompt",
    "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_vl",
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = make_run(tmp_path_factory.mktemp("lean"))
    for weights in (folder / "model").rglob("*.safetensors"):
        # digests of files that are this new are not remembered: they may still be changing
        os.utime(weights, (1_700_000_000, 1_700_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("pair", "cache-vae", "cache-embeds"):
            with_files(command)
        done = subprocess.run(
            [sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "pytorch_lora_weights.safetensors").is_file()
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_no_encoder_and_no_picture_code_is_loaded(seen: dict[str, list[str]]) -> None:
    loaded = [
        name
        for name in seen["modules"]
        for part in FORBIDDEN
        if (name + ".").startswith(part + ".")
    ]
    assert loaded == []
    assert "qedit.stages.train.loop" in seen["modules"]


def test_no_picture_caption_or_encoder_weight_is_opened(seen: dict[str, list[str]]) -> None:
    # paths relative to the run's folder
    touched = [path for path in seen["opened"] if path.startswith(("edited/", "reference-a/"))]
    assert touched == []
    weights = [path for path in seen["opened"] if path.endswith(".safetensors")]
    assert not any("vae" in path or "text_encoder" in path for path in weights)
    # the hook does see what is opened: the base's weights, at least
    assert any("transformer" in path for path in weights)
