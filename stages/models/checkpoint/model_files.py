"""The files of a model folder: its small JSON files, and which files hold its weights.

Other safetensors files beside the weights (a variant, a backup, shards of another version) are
ignored. If they were digested too, exchanging two names would change the model and not its digest.
"""

from __future__ import annotations

import re
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
        raise NotComplete(f"{path} cannot be read: {error}.", fetch_again(path)) from error


def fetch_again(path: Path) -> str:
    """Return what to do about a damaged file of a model.

    In the hub's cache it is a link, and only without the file behind it is it fetched again.
    """
    if path.is_symlink():
        return f"Delete {path.resolve()} and run the same command again: it downloads the file."
    return f"Delete {path} and download the file again, from where the model came."


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
        NotComplete: the index cannot be read, or does not name every file.
    """
    if not _index(folder, stem).is_file():
        return [folder / f"{stem}.safetensors"]
    return [folder / name for name in sorted(set(places_in(folder, stem).values()))]


def places_in(folder: Path, stem: str) -> dict[str, str]:
    """Return which file holds which tensor, as the index says; nothing where there is no index.

    Raises:
        NotComplete: the index cannot be read, or does not name every file.
    """
    index = _index(folder, stem)
    if not index.is_file():
        return {}
    places: Any = json_object(index).get("weight_map")
    if not _is_map_of_names(places):
        raise NotComplete(f"{index} does not say which file holds what.", fetch_again(index))
    names = set(places.values())
    numbered = re.fullmatch(r".+-\d+-of-(\d+)\.safetensors", min(names))
    if numbered and int(numbered[1]) != len(names):
        raise NotComplete(
            f"{index} names {len(names)} of {int(numbered[1])} files.", fetch_again(index)
        )
    return dict(places)


def _is_map_of_names(places: Any) -> bool:
    names = [*places.values()] if isinstance(places, dict) else []
    return bool(names) and all(isinstance(name, str) and name == Path(name).name for name in names)


def _index(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.safetensors.index.json"
