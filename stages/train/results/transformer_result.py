"""The result of `model_type` full: the transformer in a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....cache.errors import WrongUse
from ....cache.files.atomic import remove, rename
from ...models.checkpoint.model_files import config_in
from ...models.weights.streaming import tensors_in
from ...models.weights.tensor_file import as_text, metadata_in
from ...models.weights.transformer_folder import write_transformer
from ..state.checkpoint import EMA_FILE, WEIGHTS_FILE, read_state, read_tensors, step_of

FOLDER = "transformer"
_STORED = torch.bfloat16


def publish_transformer(
    output_dir: Path, checkpoint: Path, *, base: Path, about: Mapping[str, Any]
) -> None:
    """Write `checkpoint` to `transformer/` and `ema/transformer/`, in bfloat16.

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
        _write(folder, trained, base=base, about=facts)


def keep_transformer(
    folder: Path, weights: Mapping[str, Tensor], *, base: Path, about: Mapping[str, Any]
) -> None:
    """Write the transformer with `weights` to `folder`, in bfloat16.

    What it held is there until the new one is whole: nothing else may have these weights.
    """
    following = folder.with_name(f"next-{folder.name}")
    remove(following)  # a killed run may have left it, which measures again what it was for
    _write(following, weights, base=base, about=about)
    remove(folder)
    rename(following, folder.name)


def _write(
    folder: Path, trained: Mapping[str, Tensor], *, base: Path, about: Mapping[str, Any]
) -> None:
    write_transformer(
        folder,
        _stored(base, trained),
        config=config_in(base) | ({"zero_cond_t": True} if about["zero_cond_t"] else {}),
        about=as_text(about),
    )


def refuse_strange_transformer(output_dir: Path) -> None:
    """Raise if the folder that is to be written holds what no run of qedit has made.

    Raises:
        WrongUse: it would be replaced.
    """
    for folder in (output_dir / place / FOLDER for place in ("", "ema", "best")):
        if folder.exists() and "qedit" not in about_transformer(folder):
            raise WrongUse(
                f"{folder} is there and was not made by a run: it would be replaced.",
                "Move it away, or choose another `output_dir`.",
            )


def _stored(base: Path, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors_in(base):
        yield name, trained.get(name, tensor).to(_STORED)


def _digest_in(folder: Path) -> str | None:
    """Return the digest of the checkpoint that `folder` was made of; None if unreadable."""
    return about_transformer(folder).get("checkpoint_digest")


def about_transformer(folder: Path) -> Mapping[str, str]:
    """Return the metadata of the transformer in `folder`; nothing where none can be read."""
    files = sorted(folder.glob("*.safetensors"))
    return metadata_in(files[0]) if files else {}
