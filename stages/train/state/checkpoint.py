"""Checkpoints: folders that are there whole or not at all, with nothing pickled in them.

`checkpoint-N/` holds the state after N steps: `weights.safetensors` (what is trained, as it
is), `optimizer.safetensors`, `ema.safetensors` where there is one, and `state.json`, which
names the others with their digests. All are written tensor by tensor, so that a whole model is
never in memory once more. Batches and draws need no state: they are functions of the step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ....cache.errors import Broken, Damaged, WrongUse
from ....cache.files.atomic import new_folder, remove, sweep, write_json
from ....cache.files.fingerprint import has_digest
from ....cache.files.sealed import read_sealed, sealed
from ...models.weights.tensor_file import write_tensors
from ...run_output.run_file import STATE_FILE
from .ema import Ema
from .optimizers import optimizer_tensors, restore_optimizer
from .skips import Skips

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
EMA_FILE = "ema.safetensors"


@dataclass
class Trained:
    """Everything that a step changes."""

    weights: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    skips: Skips = field(default_factory=Skips)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors, not copied, by the files of a checkpoint that they go to."""
        files: dict[str, Mapping[str, Tensor]] = {
            WEIGHTS_FILE: self.weights,
            OPTIMIZER_FILE: optimizer_tensors(self.optimizer, self.weights),
        }
        if self.ema:
            files[EMA_FILE] = self.ema.shadow
        return files

    @torch.no_grad()
    def restore(self, checkpoint: Path) -> None:
        """Restore the checkpoint, bit for bit."""
        for name, tensor in read_tensors(checkpoint, WEIGHTS_FILE).items():
            self.weights[name].copy_(tensor)
        state = read_tensors(checkpoint, OPTIMIZER_FILE)
        restore_optimizer(self.optimizer, self.weights, self._in_place(state))
        if self.ema:
            for name, tensor in read_tensors(checkpoint, EMA_FILE).items():
                self.ema.shadow[name].copy_(tensor)
        # checkpoints of the first version count nothing
        self.skips = Skips(**read_state(checkpoint).get("skips", {}))

    def _in_place(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the optimizer's tensors on the devices of their weights, one by one.

        What is mapped from a file must not change with the file. Numbers stay on the CPU.
        """
        copies = {}
        for key, tensor in state.items():
            weight = self.weights.get(key.partition(":")[2])
            place = weight.device if weight is not None and tensor.ndim else "cpu"
            copies[key] = tensor.to(place, copy=True)
        return copies


def save_checkpoint(
    output_dir: Path,
    trained: Trained,
    *,
    step: int,
    of_steps: int,
    run: Mapping[str, Any],
    limit: int,
) -> Path:
    """Write `checkpoint-<step>/` whole, then remove the oldest beyond `limit`.

    Args:
        of_steps: how many steps the run was to have in all.
        run: what decides the run, as in run.json: a checkpoint is told from another run's by it.
    """
    folder = output_dir / f"checkpoint-{step}"
    sweep(output_dir)
    if _is_checkpoint(folder):
        remove(folder)
    with new_folder(folder) as partial:
        digests = {
            name: write_tensors(partial / name, tensors)
            for name, tensors in trained.tensors().items()
        }
        state = {
            "step": step,
            "of_steps": of_steps,
            "skips": asdict(trained.skips),
            "files": digests,
            "run": dict(run),
        }
        write_json(partial / STATE_FILE, sealed(state))
    others = [path for path in checkpoints(output_dir) if path != folder]
    for path in others[: max(0, len(others) + 1 - limit)]:
        remove(path)
    return folder


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the complete checkpoints in `output_dir`, by step."""
    found = [path for path in output_dir.glob("checkpoint-*") if _is_checkpoint(path)]
    return sorted(found, key=step_of)


def strangers(output_dir: Path) -> list[Path]:
    """Return folders that are named like checkpoints but were made by another trainer."""
    found = output_dir.glob("checkpoint-*")
    return sorted(path for path in found if not _is_checkpoint(path))


def _is_checkpoint(path: Path) -> bool:
    return bool(re.fullmatch(r"checkpoint-\d+", path.name)) and (path / STATE_FILE).is_file()


def step_of(checkpoint: Path) -> int:
    """Return how many steps had been made when it was written."""
    return int(read_state(checkpoint)["step"])


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return its state.json: `step`, the digests of its `files`, and the `run` it belongs to."""
    try:
        state = read_sealed(checkpoint / STATE_FILE)
        int(state["step"])
    except (ValueError, KeyError, TypeError, Broken) as error:
        raise Damaged(f"{checkpoint / STATE_FILE} cannot be read.", _go_on(checkpoint)) from error
    return state


def checkpoint_to_resume(output_dir: Path, wanted: str | None) -> Path | None:
    """Return the checkpoint to go on from; None begins at step 1.

    Args:
        wanted: "latest", "none" (or None), or the path of a checkpoint.

    Raises:
        WrongUse: no such checkpoint; or "none", while `output_dir` holds checkpoints that a
            run from the beginning would have to overwrite.
    """
    there = checkpoints(output_dir)
    if wanted == "latest":
        return there[-1] if there else None
    if wanted is None or wanted == "none":
        if there:
            raise WrongUse(
                f"{output_dir} holds {there[-1].name}, and `resume_from_checkpoint` is none.",
                "Choose another `output_dir`, move that folder away, or resume from `latest`.",
            )
        return None
    for path in (Path(wanted), output_dir / wanted):
        if (path / STATE_FILE).is_file():
            return path
    raise WrongUse(
        f"`resume_from_checkpoint` is {wanted}, which is not a checkpoint.",
        f"There are: {', '.join(path.name for path in there) or 'none'}.",
    )


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of one of its files.

    Raises:
        Damaged: its bytes are not those that were written.
    """
    path = checkpoint / name
    digest = read_state(checkpoint)["files"].get(name)
    if digest is None or not has_digest(path, digest):
        raise Damaged(f"{path} is not as it was written.", _go_on(checkpoint))
    return safetensors.torch.load_file(path)


def _go_on(checkpoint: Path) -> str:
    return f"Remove {checkpoint} and run again: training goes on from the checkpoint before it."
