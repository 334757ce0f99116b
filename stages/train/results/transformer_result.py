"""The result of `model_type` full: the transformer in a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....cache.errors import WrongUse
from ....cache.files.atomic import remove, rename
from ...models.checkpoint.checkpoint import Checkpoint
from ...models.checkpoint.config_values import config_in
from ...models.weights.streaming import tensors_in
from ...models.weights.tensor_file import as_text, metadata_in
from ...models.weights.transformer_folder import write_transformer

FOLDER = "transformer"
_STORED = torch.bfloat16


def write_trained(
    folder: Path, trained: Mapping[str, Tensor], *, base: Checkpoint, about: Mapping[str, Any]
) -> None:
    """Write the transformer with the weights `trained` to `folder`, in bfloat16.

    What was not trained is that of `base`.
    """
    write_transformer(
        folder,
        _stored(base, trained),
        config=config_in(base.transformer)
        | ({"zero_cond_t": True} if about["zero_cond_t"] else {}),
        about=as_text(about),
    )


def replace_trained(
    folder: Path, trained: Mapping[str, Tensor], *, base: Checkpoint, about: Mapping[str, Any]
) -> None:
    """Write it as `write_trained` does, in place of what `folder` holds.

    That is there until the new one is whole: nothing else may have these weights.
    """
    following = folder.with_name(f"next-{folder.name}")
    remove(following)  # a killed run may have left it, which measures again what it was for
    write_trained(following, trained, base=base, about=about)
    remove(folder)
    rename(following, folder.name)


def _stored(base: Checkpoint, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors_in(base.transformer, remember=base.remember):
        yield name, trained.get(name, tensor).to(_STORED)


def refuse_strange_transformer(output_dir: Path) -> None:
    """Raise if the folder that is to be written holds what no run of qedit has made.

    Raises:
        WrongUse: it would be replaced.
    """
    for folder in (output_dir / place / FOLDER for place in ("", "ema", "best")):
        if folder.exists() and "qedit" not in metadata_of(folder):
            raise WrongUse(
                f"{folder} is there and was not made by a run: it would be replaced.",
                "Move it away, or choose another `output_dir`.",
            )


def metadata_of(result: Path) -> Mapping[str, str]:
    """Return the metadata of a LoRA file, or of a transformer's folder; none if unreadable."""
    files = sorted(result.glob("*.safetensors")) if result.is_dir() else [result]
    return metadata_in(files[0]) if files else {}
