"""The initial weights of a LoRA that began as a part of the base, kept beside the run.

`pissa` and `olora` take their start out of the base. To go on, the same must be taken out again;
and a published file, which meets a base that is whole, must subtract it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ....cache.files.fingerprint import fingerprint
from ...models.weights.tensor_file import as_text, write_tensors
from ..state.run_record import is_same_run

START_FILE = "lora-start.safetensors"


def write_initial_weights(
    output_dir: Path, weights: Mapping[str, Tensor], *, run: Mapping[str, Any]
) -> None:
    """Write the initial weights of the LoRA of `run`."""
    write_tensors(output_dir / START_FILE, weights, metadata=as_text({"run": run}))


def read_initial_weights(output_dir: Path, *, run: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the initial weights of the LoRA of `run`; None where they are not there."""
    path = output_dir / START_FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        if not _is_of(run, (file.metadata() or {}).get("run", "")):
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _is_of(run: Mapping[str, Any], recorded: str) -> bool:
    """Return whether a file belongs to `run`; the first files had a fingerprint alone."""
    return (
        is_same_run(json.loads(recorded), run)
        if recorded.startswith("{")
        else recorded == fingerprint(run)
    )


def subtract_initial(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the LoRA or DoRA of twice the rank that adds `weights` and subtracts `start`.

    The norms of a DoRA are those of whole weights, whose directions are the same either way.
    """
    both = dict(weights)
    for name, weight in weights.items():
        began = start[name].to(weight)
        if name.endswith(".lora_A.weight"):
            both[name] = torch.cat([weight, began])
        elif name.endswith(".lora_B.weight"):
            both[name] = torch.cat([weight, -began], dim=1)
    return both
