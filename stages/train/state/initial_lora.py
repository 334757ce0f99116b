"""The start of a LoRA: the file that `init_lora` names, or a part taken out of the base.

`pissa` and `olora` take their start out of the base. To go on, the same must be taken out again;
and a published file, which meets a base that is whole, must subtract it. So it is kept beside the
run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....cache.errors import Damaged, WrongUse
from ....cache.files.checksum import crc32c
from ....cache.files.fingerprint import digest_file, fingerprint
from ....cache.files.sealed import CHECKSUM
from ....config.settings import Settings
from ...models.lora.lora_file import Lora, lora_path, read_lora
from ...models.weights.tensor_file import as_text, write_tensors
from ...run_output.data_history import as_of
from ...run_output.run_file import read_run
from .checkpoint import checkpoint_to_resume, read_state
from .run_record import is_same_run

START_FILE = "lora-start.safetensors"


def read_initial_lora(settings: Settings) -> Lora | None:
    """Return the LoRA that `init_lora` names; None where it names none.

    Raises:
        WrongUse: it cannot be read, or has a higher rank than `lora_rank`.
    """
    if settings.init_lora is None:
        return None
    lora = read_lora(Path(settings.init_lora).expanduser())
    if max(lora.ranks) > settings.lora_rank:
        ranks = ", ".join(str(rank) for rank in sorted(lora.ranks))
        raise WrongUse(
            f"`init_lora`: {settings.init_lora} is of rank {ranks}, and `lora_rank` is "
            f"{settings.lora_rank}.",
            f"Type `--set lora_rank={max(lora.ranks)}` or more, or give another LoRA.",
        )
    return lora


def initial_lora_digest(settings: Settings) -> str | None:
    """Return the digest of the file that `init_lora` names; None where there is none.

    Of a run that goes on with the same key it is what it was: the file is no longer read, and
    may hold something else by now.
    """
    if settings.init_lora is None:
        return None
    begin = checkpoint_to_resume(settings.output_dir, settings.resume_from_checkpoint)
    if begin is not None:
        run = read_state(begin)["run"]
        known: str | None = run.get("start")
        # the folder says how the file was called last, the checkpoint how when it was written
        for known_run in (run, read_run(settings.output_dir) or {}):
            named = known_run.get("settings", {}).get("init_lora")
            if known_run.get("start") == known and named == settings.init_lora:
                return known
    path = lora_path(Path(settings.init_lora).expanduser())
    return digest_file(path) if path.is_file() else None


def write_initial_weights(
    output_dir: Path, weights: Mapping[str, Tensor], *, run: Mapping[str, Any]
) -> None:
    """Write the initial weights of the LoRA of `run`."""
    about = as_text({"run": run, CHECKSUM: _checksum_of(weights)})
    write_tensors(output_dir / START_FILE, weights, metadata=about)


def _checksum_of(weights: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, shapes and numbers."""
    there = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return f"{crc32c(safetensors.torch.save(there)):08x}"


def read_initial_weights(output_dir: Path, *, run: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the initial weights of the LoRA of `run`; None where they are not there.

    Raises:
        Damaged: they are not as they were written; earlier versions wrote no checksum.
    """
    path = output_dir / START_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if not _is_of(run, about.get("run", "")):
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        is_whole = CHECKSUM not in about or about[CHECKSUM] == _checksum_of(weights)
    except (SafetensorError, ValueError):
        is_whole = False
    if not is_whole:
        raise Damaged(
            f"{path} is not as it was written.",
            f"Delete {path} and run `qedit train` again: it is taken out of the base anew.",
        )
    return weights


def _is_of(run: Mapping[str, Any], recorded: str) -> bool:
    """Return whether a file belongs to `run`; the first files had a fingerprint alone."""
    if recorded.startswith("{"):
        return is_same_run(json.loads(recorded), run)
    first = as_of(run, 1)
    return recorded == fingerprint({name: first[name] for name in first if name != "tables"})


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
