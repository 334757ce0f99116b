"""What a LoRA began as, where it began as a part of the base: kept beside the run.

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


def keep_start(output_dir: Path, weights: Mapping[str, Tensor], *, run: Mapping[str, Any]) -> None:
    """Write what the LoRA of `run` begins as."""
    write_tensors(output_dir / START_FILE, weights, metadata=as_text({"run": run}))


def kept_start(output_dir: Path, *, run: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """What the LoRA of `run` began as; None where that is not there."""
    path = output_dir / START_FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        if not _is_of(run, (file.metadata() or {}).get("run", "")):
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _is_of(run: Mapping[str, Any], said: str) -> bool:
    """Whether what a file says of its run is `run`; the first files had a fingerprint alone."""
    return is_same_run(json.loads(said), run) if said.startswith("{") else said == fingerprint(run)


def less_start(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA or DoRA of twice the rank that adds `weights` and takes `start` away.

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
