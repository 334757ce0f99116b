"""Makes filled runs, trains them, and reads what they left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_run import fill, made_configuration, made_samples_with_edits
from quiet import Quiet
from safetensors.torch import load_file

from qedit.config.loading import Configuration
from qedit.stages.samples.sample import Sample
from qedit.stages.stage import Outcome
from qedit.stages.train import loop
from qedit.stages.train.state.checkpoint import Trained

SAMPLES = made_samples_with_edits(8, sizes=[(64, 64), (64, 96)])
LORA = "pytorch_lora_weights.safetensors"

# flavour -> a folder whose caches hold the rows of SAMPLES; no test writes into it
_filled: dict[str, Path] = {}


def made_runs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Configuration]:
    """A function that gives a filled run with its output in `tmp_path`.

    Called again it gives the same run with other settings, or with other samples.
    """

    def shared(flavour: str) -> Path:
        if flavour not in _filled:
            folder = tmp_path_factory.mktemp("shared")
            fill(made_configuration(folder, flavour=flavour), SAMPLES)
            _filled[flavour] = folder
        return _filled[flavour]

    def make(
        samples: list[Sample] | None = None, *, output: str = "output", **settings: Any
    ) -> Configuration:
        flavour = settings.pop("flavour", "edit-v2")
        folder = shared(flavour) if samples is None else tmp_path
        configuration = made_configuration(
            folder, flavour=flavour, output_dir=str(tmp_path / output), **settings
        )
        if samples is not None:
            fill(configuration, samples)
        return configuration

    return make


def train(configuration: Configuration, **options: Any) -> Outcome:
    """Run the stage on the CPU."""
    return loop.run(configuration, Quiet(), device="cpu", **options)


def metrics(configuration: Configuration) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    text = (configuration.settings.output_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def ending(configuration: Configuration, *files: str) -> dict[str, Any]:
    """The log without what differs between machines, and the bytes of these files."""
    of_the_machine = ("seconds", "data_wait_seconds", "memory_bytes")
    log = [
        {key: value for key, value in line.items() if key not in of_the_machine}
        for line in metrics(configuration)
    ]
    where = configuration.settings.output_dir
    return {"log": log} | {name: (where / name).read_bytes() for name in files}


def lora(configuration: Configuration, name: str = "") -> dict[str, torch.Tensor]:
    """The published LoRA, or that in the folder `name` beside it."""
    return load_file(configuration.settings.output_dir / name / LORA)


def checkpoint_names(configuration: Configuration) -> list[str]:
    """The checkpoints in the output folder."""
    return sorted(path.name for path in configuration.settings.output_dir.glob("checkpoint-*"))


def bits_of(trained: Trained) -> dict[str, dict[str, bytes]]:
    """All that a step changes, to the bit, by the files of a checkpoint."""
    return {
        file: {
            name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in named.items()
        }
        for file, named in trained.tensors().items()
    }
