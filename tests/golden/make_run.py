"""Make run-eb5e489.tar.xz: a whole project folder as qedit left it at commit eb5e489.

It holds pictures, captions, a tiny checkpoint, the caches of two runs that share them, and both
runs: `config.json` (int8 base, held-out pairs, previews; stopped after step 2 of 4) and
`config-2.json` (bf16 with a modulation table, other latents). One sample was deleted before the
training, so gc has rows to remove. `expected/` is what that commit made of steps 3 and 4.

Never to be made anew: every later version must read it as it is. It was made by

    git checkout eb5e489 && OMP_NUM_THREADS=1 python tests/golden/make_run.py
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ARCHIVE = HERE / "run-eb5e489.tar.xz"
FOLDER = "run-eb5e489"
# what steps 3 and 4 change, and what is published of it
EXPECTED = (
    "metrics.jsonl",
    "pytorch_lora_weights.safetensors",
    "ema/pytorch_lora_weights.safetensors",
    "checkpoint-4/weights.safetensors",
    "checkpoint-4/optimizer.safetensors",
    "checkpoint-4/ema.safetensors",
)
SETTINGS: dict[str, Any] = {
    "max_train_steps": 2,
    "checkpoint_step_interval": 2,
    "lora_rank": 4,
    "learning_rate": 1e-3,
    "train_batch_size": 2,
    "base_model_precision": "int8-quanto",
    "validation_disable": False,
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_step_interval": 2,
    "eval_steps_interval": 2,
    "num_eval_images": 2,
}


def arithmetic() -> dict[str, torch.Tensor]:
    """Results of float32 arithmetic that may differ in the last bit between processors.

    Where these bits are not those in `expected/arithmetic.safetensors`, no version of qedit can
    repeat the expected steps to the bit, and the test compares them with a tolerance.
    """
    numbers = (torch.arange(96 * 96, dtype=torch.float32) * 0.37).sin().reshape(96, 96)
    picture = numbers[:64, :64].reshape(1, 4, 32, 32)
    return {
        "product": numbers @ numbers.T,
        "softmax": torch.softmax(numbers @ numbers, dim=-1),
        "attention": torch.nn.functional.scaled_dot_product_attention(
            *(numbers.reshape(1, 4, 24, 96) * scale for scale in (1.0, 0.5, 2.0))
        ),
        "silu": torch.nn.functional.silu(numbers * 8),
        "convolution": torch.nn.functional.conv2d(picture, numbers[:36].reshape(24, 4, 6, 6)),
        "norm": torch.nn.functional.layer_norm(numbers, (96,)),
    }


def held_out(folder: Path) -> list[dict[str, Any]]:
    """Two held-out pairs, and the datasets that name them."""
    from small_run import SIZES, draw

    for number in range(2):
        draw(folder / "held-out" / f"h{number}.png", SIZES[number], 50 + number)
        (folder / "held-out" / f"h{number}.txt").write_text(f"make it number {number}\n")
        for letter in "ab":
            draw(folder / f"held-out-{letter}" / f"h{number}.png", SIZES[number], 60 + number)
    conditioning = [
        {
            "id": f"held-out-{letter}",
            "dataset_type": "conditioning",
            "instance_data_dir": f"held-out-{letter}",
            "resolution": 64,
        }
        for letter in "ab"
    ]
    main = {
        "id": "held-out",
        "dataset_type": "eval",
        "instance_data_dir": "held-out",
        "caption_strategy": "textfile",
        "resolution": 64,
        "conditioning_data": ["held-out-a", "held-out-b"],
    }
    return [main, *conditioning]


def make(folder: Path) -> None:
    """Lay out the project and run both configurations with the commands a user types."""
    from small_run import make_run, qedit, with_files

    make_run(folder, flavour="edit-v2", references=2, **SETTINGS)
    data = json.loads((folder / "data.json").read_text()) + held_out(folder)
    (folder / "data.json").write_text(json.dumps(data, indent=2))
    config = json.loads((folder / "config.json").read_text())
    second = config | {
        "output_dir": "out-2",
        "mixed_precision": "bf16",
        "base_model_precision": "no_change",
        "validation_disable": True,
        "max_train_steps": 1,
    }
    (folder / "config-2.json").write_text(json.dumps(second, indent=2))
    os.chdir(folder)
    for name in ("pair", "cache-vae", "cache-embeds"):
        with_files(name)
    # its rows are of no use to either run
    (folder / "edited" / "p3.png").unlink()
    (folder / "edited" / "p3.txt").unlink()
    for letter in "ab":
        (folder / f"reference-{letter}" / "p3.png").unlink()
    with_files("run")
    data[0]["resolution"] = 48
    (folder / "data-2.json").write_text(json.dumps(data, indent=2))
    qedit("run", "--config", "config-2.json", "--data", "data-2.json")


def expect(folder: Path, target: Path) -> None:
    """Go on to step 4 in a copy of the project, and keep what that made under `target`."""
    from small_run import with_files

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch) / "copy"))
        os.chdir(copy)
        with_files("train", "--set", "max_train_steps=4")
        for name in EXPECTED:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / "out" / name, target / name)
        os.chdir(folder)
    save_file(arithmetic(), target / "arithmetic.safetensors")


if __name__ == "__main__":
    if ARCHIVE.exists():
        sys.exit(f"{ARCHIVE} is there: it is never made anew")
    sys.path.insert(0, str(HERE.parent / "support"))
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch).resolve() / FOLDER
        make(project)
        expect(project, project / "expected")
        os.chdir(HERE)
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(project, FOLDER)
