"""Preview latents on disk: written by `train`, made into pictures by `preview`.

    <output_dir>/previews/
        step-000000/00-cat.base.safetensors    the base model's edit of the first sample
        step-000500/00-cat.now.safetensors     the trained weights'
        step-000500/00-cat.ema.safetensors     their average's
        step-000500/00-cat.now.png, .webp      the picture, whole and small
        step-000500/alignment.json             how far each picture lies from its reference
        sources/<digest>.webp                  references and targets, small

Each file of latents holds one tensor, `latents` [1, channel, height, width], normalised, and
what it was made from. A file is there whole or not at all, and names the recipe it was made by.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
from torch import Tensor

from ...cache.errors import Broken, Damaged
from ...cache.files.atomic import remove, write_bytes, write_json
from ...cache.files.decides_nothing import make_way, read_or_empty
from ...cache.files.json_file import object_in
from ...cache.files.sealed import sealed, unsealed
from ..models.weights.file_checksum import is_whole, with_checksum
from ..models.weights.tensor_file import metadata_in

Part = Literal["base", "now", "ema"]
"""Whose edit it is: the base model's, the trained weights', their average's."""

PREVIEWS = "previews"
SHEET_FILE = "sheet.png"  # in the folder of a step, made by `preview`
LATENTS = ".safetensors"
FAILED = ".failed.json"
REMADE = "Previews of the last step are made anew by the next `qedit train`; others are left out."
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

    @property
    def picture(self) -> Path:
        """The path at which `preview` writes the picture of the latents."""
        return _beside(self.path, ".png")

    @property
    def small_picture(self) -> Path:
        """The path of the small version, which the page holds."""
        return _beside(self.path, ".webp")

    def latents(self) -> Tensor:
        """Read the latents [1, channel, height, width], as they came out of the last step.

        Raises:
            Damaged: they are not those that were written.
        """
        if not is_whole(self.path):
            raise Damaged(f"{self.path} is not as it was written.", REMADE)
        tensor: Tensor = safetensors.torch.load_file(self.path)["latents"]
        return tensor


def step_folder(output_dir: Path, step: int) -> Path:
    """Return where the previews of `step` lie."""
    return output_dir / PREVIEWS / f"step-{step:06}"


def source_picture(output_dir: Path, facts: Mapping[str, Any]) -> Path:
    """Return where the small version of a reference or target lies."""
    return output_dir / PREVIEWS / "sources" / f"{facts['digest']}.webp"


def drift_file(output_dir: Path, step: int) -> Path:
    """Return where lies what `preview` measured of the previews of `step`."""
    return step_folder(output_dir, step) / "alignment.json"


def read_drift(output_dir: Path, step: int) -> dict[str, dict[str, Any]]:
    """Read what was measured of the previews of `step`, by the names of their files."""
    found = read_or_empty(drift_file(output_dir, step))
    wanted = {"recipe", "sample", "part"}
    return {name: one for name, one in found.items() if isinstance(one, dict) and wanted <= {*one}}


def thinned(values: Sequence[int], *, most: int) -> list[int]:
    """Return at most `most` of `values`, evenly, the first and the last among them.

    >>> thinned(range(10), most=4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def stem_of(place: int, name: str) -> str:
    """Return the start of the file names of the sample at `place`.

    >>> stem_of(3, "cats/Tom & Jerry.png")
    '03-cats-Tom-Jerry'
    """
    words = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition(".")[0] or name).strip("-")
    return f"{place:02}-{words[:48] or 'sample'}"


def store(path: Path, latents: Tensor, *, recipe: str, about: Mapping[str, Any]) -> None:
    """Write a preview's latents, whole or not at all."""
    tensors = {"latents": latents.detach().cpu().contiguous()}
    facts = sealed({**about, "recipe": recipe})
    metadata = {"recipe": recipe, "about": json.dumps(facts, ensure_ascii=False)}
    make_way(path)
    write_bytes(path, with_checksum(safetensors.torch.save(tensors, metadata=metadata)))
    remove(_beside(path, FAILED))


def store_failure(path: Path, *, recipe: str, why: str) -> None:
    """Write in the preview's place that it was tried and why it failed."""
    write_json(_beside(path, FAILED), {"recipe": recipe, "why": why})


def was_tried(path: Path, *, recipe: str) -> bool:
    """Return whether the preview at `path` was made by this recipe, or has failed with it."""
    stored, failed = read_stored(path), _beside(path, FAILED)
    if stored is not None and stored.recipe == recipe:
        with contextlib.suppress(Damaged):
            stored.latents()
            return True
    return read_or_empty(failed).get("recipe") == recipe


def read_stored(path: Path) -> Stored | None:
    """Read the preview at `path`, but not its tensor; return None if there is none to read."""
    named = _NAME.fullmatch(path.name.removesuffix(LATENTS))
    step = path.parent.name.removeprefix("step-")
    if named is None or not step.isdecimal():
        return None
    metadata, part = metadata_in(path), cast(Part, named["part"])
    try:
        about = unsealed(object_in(metadata["about"].encode()))
    except (KeyError, ValueError, Broken):
        return None
    return Stored(path, int(step), part, about.get("recipe", metadata["recipe"]), about)


def stored_previews(output_dir: Path, *, step: int | None = None) -> Iterator[Stored]:
    """Yield every preview of a run (or of one step of it), by step, then by name."""
    wanted = "step-*" if step is None else step_folder(output_dir, step).name
    for path in sorted((output_dir / PREVIEWS).glob(f"{wanted}/*{LATENTS}")):
        stored = read_stored(path)
        if stored is not None:
            yield stored


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(LATENTS) + ending)
