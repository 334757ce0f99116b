"""The small JSON files of a checkpoint's parts: read locally, or downloaded alone.

What is to be foreseen must not need the weights: of a repository on the hub that has not been
downloaded, these few kilobytes are fetched and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....cache.errors import WrongUse
from .checkpoint import ModelSettings, flavour_of
from .hub import fetched_file
from .json_file import json_object

CONFIG_FILE = "config.json"


def part_config(settings: ModelSettings, part: str, file: str = CONFIG_FILE) -> dict[str, Any]:
    """Return the JSON object in `file` of `part` (transformer, vae, text_encoder, processor).

    Empty for a flavour's own repository that cannot be reached: the defaults of diffusers'
    and transformers' classes are the sizes of that model.

    Raises:
        WrongUse: a repository of somebody else's that cannot be reached.
        NotComplete: a local checkpoint without this file.
    """
    flavour = flavour_of(settings)
    own = getattr(settings, f"pretrained_{part}_model_name_or_path", None)
    name = own or settings.pretrained_model_name_or_path or flavour.repository
    folder = Path(name).expanduser()
    if folder.is_dir():
        path = folder / part / file if (folder / part).is_dir() or own is None else folder / file
        return json_object(path)
    revision = settings.revision if own is None else None
    fetched = fetched_file(name, f"{part}/{file}", revision=revision)
    if fetched is None and own is not None:
        fetched = fetched_file(name, file, revision=None)
    if fetched is not None:
        return json_object(fetched)
    if name == flavour.repository:
        return {}
    raise WrongUse(
        f"{name} is not downloaded, and its {part}/{file} cannot be fetched from the hub.",
        "Check the name and the connection, or name a folder that holds the checkpoint.",
    )
