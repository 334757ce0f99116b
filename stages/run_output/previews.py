"""Preview latents on disk: written by `train`, made into pictures by `preview`.

    <output_dir>/previews/
        step-000000/00-cat.base.safetensors    the base model's edit of the first sample
        step-000500/00-cat.now.safetensors     the trained weights'
        step-000500/00-cat.ema.safetensors     their average's

Each file holds one tensor, `latents` [1, channel, height, width], normalised, and beside it
what it was made from. A file is there whole or not at all, and names the recipe it was made by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
from torch import Tensor

from ...cache.files.atomic import remove, write_bytes, write_json
from ..models.weights.tensor_file import metadata_in

Part = Literal["base", "now", "ema"]
"""Whose edit it is: the base model's, the trained weights', their average's."""

PREVIEWS = "previews"
SHEET_FILE = "sheet.png"  # in the folder of a step, made by `preview`
LATENTS = ".safetensors"
FAILED = ".failed.json"
_NAME = re.compile(r"(?P<stem>\d+-.+)\.(?P<part>base|now|ema)")


@dataclass(frozen=True)
class Stored:
    """A preview that `train` has denoised.

    Attributes:
        step: after which it was made; 0 for the base model.
        about: what it was made from: sample, caption, seed, where the pictures lie.
        recipe: the fingerprint of everything that decides it.
    """

    path: Path
    step: int
    part: Part
    recipe: str
    about: Mapping[str, Any]

    @property
    def sample(self) -> str:
        return str(self.about["sample"])

    def latents(self) -> Tensor:
        """Read the latents [1, channel, height, width], as they came out of the last step."""
        tensor: Tensor = safetensors.torch.load_file(self.path)["latents"]
        return tensor


def step_folder(output_dir: Path, step: int) -> Path:
    """Return the folder of the previews of `step`."""
    return output_dir / PREVIEWS / f"step-{step:06}"


def stem_of(place: int, name: str) -> str:
    """Return the name that the files of the sample at `place` begin with.

    >>> stem_of(3, "cats/Tom & Jerry.png")
    '03-cats-Tom-Jerry'
    """
    words = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition(".")[0] or name).strip("-")
    return f"{place:02}-{words[:48] or 'sample'}"


def store(path: Path, latents: Tensor, *, recipe: str, about: Mapping[str, Any]) -> None:
    """Write a preview's latents, whole or not at all."""
    metadata = {"recipe": recipe, "about": json.dumps(about, ensure_ascii=False)}
    tensors = {"latents": latents.detach().cpu().contiguous()}
    write_bytes(path, safetensors.torch.save(tensors, metadata=metadata))
    remove(_failure_of(path))


def store_failure(path: Path, *, recipe: str, why: str) -> None:
    """Write a file that says why the preview failed, so that it is not tried again."""
    write_json(_failure_of(path), {"recipe": recipe, "why": why})


def was_tried(path: Path, *, recipe: str) -> bool:
    """Return whether the preview at `path` was made by this recipe, or has failed with it."""
    stored, failed = read_stored(path), _failure_of(path)
    if stored is not None and stored.recipe == recipe:
        return True
    return failed.is_file() and json.loads(failed.read_text("utf-8")).get("recipe") == recipe


def read_stored(path: Path) -> Stored | None:
    """Return the preview at `path`, without its tensor; None if there is none to read."""
    named = _NAME.fullmatch(path.name.removesuffix(LATENTS))
    step = path.parent.name.removeprefix("step-")
    if named is None or not step.isdecimal():
        return None
    metadata, part = metadata_in(path), cast(Part, named["part"])
    try:
        return Stored(path, int(step), part, metadata["recipe"], json.loads(metadata["about"]))
    except (KeyError, ValueError):
        return None


def stored_previews(output_dir: Path, *, step: int | None = None) -> Iterator[Stored]:
    """Yield every preview of a run (or of one step of it), by step, then by name."""
    wanted = "step-*" if step is None else step_folder(output_dir, step).name
    for path in sorted((output_dir / PREVIEWS).glob(f"{wanted}/*{LATENTS}")):
        stored = read_stored(path)
        if stored is not None:
            yield stored


def _failure_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(LATENTS) + FAILED)
