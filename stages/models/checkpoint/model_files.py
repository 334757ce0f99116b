"""The files of a model folder: its small JSON files, and which files hold its weights.

Other safetensors files beside the weights (a variant, a backup, shards of another version) are
ignored. If they were digested too, exchanging two names would change the model and not its digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....cache.errors import Broken, NotComplete
from ....cache.files.json_file import read_object

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        NotComplete: there is no such file, or something else in it.
    """
    try:
        return read_object(path)
    except FileNotFoundError:
        raise NotComplete(
            f"The checkpoint is not complete: {path} is missing.",
            "Finish the download, or name a complete checkpoint in diffusers' folder layout.",
        ) from None
    except Broken as error:
        raise NotComplete(f"{path} cannot be read: {error}.", "Download the file again.") from error


def config_in(folder: Path) -> dict[str, Any]:
    """Return the config.json of the model in `folder`."""
    return json_object(folder / "config.json")


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
