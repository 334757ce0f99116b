"""The LoRA files that people use, made from a whole checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...cache.atomic import write_bytes
from ..models.lora import lora_file
from .checkpoint import EMA_FILE, WEIGHTS_FILE, read_state, read_tensors, step_of

LORA_FILE = "pytorch_lora_weights.safetensors"
EMA_FOLDER = "ema"


@dataclass(frozen=True)
class Publisher:
    """Writes `pytorch_lora_weights.safetensors` and, with an average, `ema/` beside it.

    Attributes:
        about: what the files' metadata say of the run.
    """

    output_dir: Path
    rank: int
    alpha: float
    about: Mapping[str, Any]

    def publish(self, checkpoint: Path) -> None:
        """Have the files hold what `checkpoint` holds, unless they do already."""
        step = step_of(checkpoint)
        files = {LORA_FILE: WEIGHTS_FILE}
        if EMA_FILE in read_state(checkpoint)["files"]:
            files[f"{EMA_FOLDER}/{LORA_FILE}"] = EMA_FILE
        for name, source in files.items():
            path = self.output_dir / name
            if published_step(path) != step:
                about = {**self.about, "steps": step, "ema": source == EMA_FILE}
                weights = read_tensors(checkpoint, source)
                data = lora_file(weights, rank=self.rank, alpha=self.alpha, about=about)
                write_bytes(path, data)


def published_step(path: Path) -> int | None:
    """After how many steps the LoRA at `path` was taken; None if there is none to be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {})["steps"])
    except (SafetensorError, KeyError, ValueError):
        return None
