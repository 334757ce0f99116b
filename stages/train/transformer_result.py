"""What `model_type` full leaves: the transformer in a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...cache.atomic import remove
from ...cache.errors import WrongUse
from ..models.streaming import config_in, tensors_in
from ..models.tensor_file import as_text, write_tensors
from ..models.transformer_folder import write_transformer
from .checkpoint import EMA_FILE, WEIGHTS_FILE, read_state, read_tensors, step_of

FOLDER = "transformer"
_STORED = torch.bfloat16


def publish_transformer(
    output_dir: Path, checkpoint: Path, *, base: Path, about: Mapping[str, Any]
) -> None:
    """Have `transformer/`, and `ema/transformer/`, hold what `checkpoint` holds, in bfloat16.

    What was not trained is that of `base`.
    """
    digests = read_state(checkpoint)["files"]
    for source, folder in (
        (WEIGHTS_FILE, output_dir / FOLDER),
        (EMA_FILE, output_dir / "ema" / FOLDER),
    ):
        if source not in digests or _digest_in(folder) == digests[source]:
            continue
        facts = {**about, "steps": step_of(checkpoint), "checkpoint_digest": digests[source]}
        trained = read_tensors(checkpoint, source)
        remove(folder)
        write_transformer(
            folder,
            _stored(base, trained),
            config=config_in(base) | ({"zero_cond_t": True} if about["zero_cond_t"] else {}),
            about=as_text(facts),
        )


def refuse_strange_transformer(output_dir: Path) -> None:
    """Raise if the folder that is to be written holds what no run of qedit has made.

    Raises:
        WrongUse: it would be replaced.
    """
    for folder in (output_dir / FOLDER, output_dir / "ema" / FOLDER):
        if folder.exists() and _digest_in(folder) is None:
            raise WrongUse(
                f"{folder} is there and was not made by a run: it would be replaced.",
                "Move it away, or choose another `output_dir`.",
            )


def _stored(base: Path, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors_in(base):
        yield name, trained.get(name, tensor).to(_STORED)


def _digest_in(folder: Path) -> str | None:
    """Of the checkpoint that the transformer in `folder` was made of; None: none to read."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    try:
        with safe_open(files[0], "pt") as file:
            return (file.metadata() or {}).get("checkpoint_digest")
    except SafetensorError:
        return None


def write_trained(path: Path, weights: Mapping[str, Tensor], *, about: Mapping[str, Any]) -> None:
    """Make `path` a safetensors file of the trained weights alone, in bfloat16."""
    metadata = {"format": "pt", **as_text(about)}
    write_tensors(path, weights, metadata=metadata, dtype=_STORED)
