"""The weight files of a model folder: the same for digests and for loading.

Other safetensors files beside them (a variant, a backup, shards of another version) are nobody's
weights. Were they digested too, to exchange two names would change the model and not its digest.
"""

from __future__ import annotations

from pathlib import Path

from .json_file import json_object

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model in `folder`; all if none has the usual name."""
    for stem in STEMS:
        files = files_named(folder, stem)
        if _index(folder, stem).is_file() or files[0].is_file():
            return files
    return sorted(folder.glob("*.safetensors"))


def files_named(folder: Path, stem: str) -> list[Path]:
    """Return the files that a model called `stem` must have: those in its index, or one.

    Raises:
        NotComplete: the index cannot be read.
    """
    index = _index(folder, stem)
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    return [folder / name for name in sorted(set(json_object(index)["weight_map"].values()))]


def _index(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.safetensors.index.json"
