"""Checkpoints: where their parts lie, and the check that they belong to their flavour.

Reads names and small JSON files only: no weights, no torch. A model is loaded elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....cache.errors import NotComplete, WrongUse
from ....config.settings import Settings
from ..flavours import FLAVOURS, Flavour
from .config_values import config_in, config_object
from .digests import digests_file
from .hub import fetched, fetched_file, local_folder
from .model_files import files_named, json_object
from .weights_header import refuse_damaged_weights

# Parts that only make rows: whoever reads the rows does without them.
ENCODERS = ("vae", "text_encoder")
AREAS_FILE = "qedit.json"
CONFIG_FILE = "config.json"
INDEX_FILE = "model_index.json"
# What must lie in a part's folder, beside the weights of the three that have some.
_FILES: dict[str, str] = {
    "transformer": CONFIG_FILE,
    "vae": CONFIG_FILE,
    "text_encoder": CONFIG_FILE,
    "tokenizer": "tokenizer_config.json",
    "processor": "preprocessor_config.json",
    "scheduler": "scheduler_config.json",
}
PARTS = tuple(_FILES)
_WEIGHTS: dict[str, str] = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose parts are all there and agree with its flavour.

    Attributes:
        flavour: with the areas that the checkpoint's own qedit.json names, if it has one.
        transformer, vae, text_encoder, tokenizer, processor, scheduler: folders.
        zero_cond_t: as the transformer must be built, edit-v2+'s override included.
        source: what the user wrote (or the flavour's repository).
        remember: the file that knows digest and checksums of its weights, see `model_digest`.
    """

    flavour: Flavour
    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    processor: Path
    scheduler: Path
    zero_cond_t: bool
    source: str
    remember: Path | None = None


def flavour_of(settings: Settings) -> Flavour:
    """Return the flavour that `settings` name, with the areas of a local checkpoint's qedit.json.

    Reads a few small files at most and never the network.

    Raises:
        WrongUse: no such flavour, a local folder that is not there, or one that holds
            another flavour's model.
    """
    name = settings.model_flavour
    if name not in FLAVOURS:
        raise WrongUse(
            f'model_flavour "{name}" is not known.' if name else "model_flavour is not set.",
            f"Set model_flavour to one of {', '.join(FLAVOURS)}.",
        )
    flavour = FLAVOURS[name]
    folder = local_folder(settings.pretrained_model_name_or_path, "pretrained_model_name_or_path")
    if folder is None:
        return flavour
    if settings.pretrained_transformer_model_name_or_path is None:
        _refuse_contradiction(flavour, folder, transformer=folder / "transformer")
    if not (folder / AREAS_FILE).is_file():
        return flavour
    areas = json_object(folder / AREAS_FILE)
    unknown = areas.keys() - {"vae_area", "vl_area"}
    if unknown or not all(type(area) is int and area > 0 for area in areas.values()):
        raise WrongUse(
            f"{folder / AREAS_FILE} may hold vae_area and vl_area, in square pixels, only.",
            "Fix the file, or remove it to use the flavour's own areas.",
        )
    return replace(flavour, **areas)


def is_model_local(settings: Settings) -> bool:
    """Return whether every part lies in a folder, so that nothing is downloaded to open it."""
    own = "pretrained_model_name_or_path"
    keys = [key for part in _WEIGHTS if getattr(settings, key := _override_key(part))]
    return all(local_folder(getattr(settings, key), key) for key in (own, *keys))


def _override_key(part: str) -> str:
    return f"pretrained_{part}_model_name_or_path"


def open_checkpoint(settings: Settings, *, spared: Collection[str] = ()) -> Checkpoint:
    """Find every part of the checkpoint that `settings` name; download missing parts from the hub.

    Args:
        spared: parts that may be gone, and whose weights are not looked at: what was made with
            them lies in the caches.

    Raises:
        WrongUse: a folder or repository that cannot be had, or a checkpoint that contradicts
            `model_flavour`.
        NotComplete: a file of a part is missing.
        Damaged: a file of weights is cut short, or its header is wrong.
    """
    flavour = flavour_of(settings)
    source = settings.pretrained_model_name_or_path or flavour.repository
    overrides = {
        part: name for part in _WEIGHTS if (name := getattr(settings, _override_key(part)))
    }
    root = local_folder(source, "pretrained_model_name_or_path")
    if root is None:
        wanted = [part for part in PARTS if part not in overrides and part not in spared]
        root = fetched(source, revision=settings.revision, patterns=_patterns(wanted))
    parts = {part: root / part for part in PARTS}
    for part, name in overrides.items():
        parts[part] = _override(part, name)
    there = {part: path for part, path in parts.items() if part not in spared or path.is_dir()}
    _refuse_gaps(root, there)
    for part, folder in there.items():
        config_object(folder / _FILES[part])
        if part in _WEIGHTS and part not in spared:
            refuse_damaged_weights(folder, _WEIGHTS[part])
    _refuse_contradiction(flavour, root, transformer=parts["transformer"], source=source)
    return Checkpoint(
        flavour=flavour,
        zero_cond_t=flavour.zero_cond_t,
        source=source,
        remember=digests_file(settings),
        **parts,
    )


def part_config(settings: Settings, part: str, file: str = CONFIG_FILE) -> dict[str, Any]:
    """Return the JSON object in `file` of `part` (transformer, vae, text_encoder, processor).

    Empty for a flavour's own repository that cannot be reached: the defaults of diffusers'
    and transformers' classes are the sizes of that model.

    Raises:
        WrongUse: a repository of somebody else's that cannot be reached.
        NotComplete: a local checkpoint without this file.
    """
    flavour = flavour_of(settings)
    own = getattr(settings, _override_key(part), None)
    repository = own or settings.pretrained_model_name_or_path or flavour.repository
    folder = Path(repository).expanduser()
    if folder.is_dir():
        path = folder / part / file if (folder / part).is_dir() or own is None else folder / file
        return config_object(path)
    revision = settings.revision if own is None else None
    found = fetched_file(repository, f"{part}/{file}", revision=revision)
    if found is None and own is not None:
        found = fetched_file(repository, file, revision=None)
    if found is not None:
        return config_object(found)
    if repository == flavour.repository:
        return {}
    raise WrongUse(
        f"{repository} is not downloaded, and its {part}/{file} cannot be fetched from the hub.",
        "Check the name and the connection, or name a folder that holds the checkpoint.",
    )


def processor_of(settings: Settings) -> Path:
    """Return the folder of a checkpoint's tokenizer and processor alone, downloaded if missing.

    Raises:
        WrongUse: a folder or repository that cannot be had.
    """
    source = settings.pretrained_model_name_or_path or flavour_of(settings).repository
    root = local_folder(source, "pretrained_model_name_or_path")
    if root is None:
        root = fetched(source, revision=settings.revision, patterns=_patterns(["processor"]))
    return root / "processor"


# -- where it lies ---------------------------------------------------------------------


def _patterns(parts: list[str]) -> list[str]:
    """Return the file patterns to download: configurations, vocabularies and safetensors."""
    endings = ("json", "txt", "jinja", "safetensors")
    return [INDEX_FILE, *(f"{part}/*.{ending}" for part in parts for ending in endings)]


def _override(part: str, name: str) -> Path:
    """Return the folder of `part` in `name`: the part itself, or a checkpoint that has it."""
    folder = local_folder(name, _override_key(part))
    if folder is None:
        stem = _WEIGHTS[part]
        patterns = ["config.json", f"{stem}*", *_patterns([part])]
        folder = fetched(name, revision=None, patterns=patterns)
    return folder / part if (folder / part).is_dir() else folder


# -- whether it is whole and the right one ---------------------------------------------


def _refuse_gaps(root: Path, parts: Mapping[str, Path]) -> None:
    needed = [root / INDEX_FILE]
    for part, folder in parts.items():
        needed.append(folder / _FILES[part])
        if part in _WEIGHTS:
            needed += files_named(folder, _WEIGHTS[part])
    if not (parts["tokenizer"] / "vocab.json").is_file():
        needed.append(parts["tokenizer"] / "tokenizer.json")
    missing = [path for path in needed if not path.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise NotComplete(
            f"The checkpoint is not complete: {missing[0]} is missing{others}.",
            "Finish the download, or name a complete checkpoint in diffusers' folder layout.",
        )


def _refuse_contradiction(
    flavour: Flavour, root: Path, *, transformer: Path, source: str = ""
) -> None:
    """Raise WrongUse where the checkpoint's config files belong to another flavour."""
    index, config = root / INDEX_FILE, transformer / CONFIG_FILE
    if not (index.is_file() and config.is_file()):
        return  # a half checkpoint: `open_checkpoint` says what is missing
    pipeline = json_object(index).get("_class_name")
    zero_cond_t = bool(config_in(transformer).get("zero_cond_t"))
    if (pipeline, zero_cond_t) == (flavour.pipeline, flavour.zero_cond_t_on_disk):
        return
    source = source or str(root)
    if pipeline != flavour.pipeline:
        says = f"its model_index.json says {pipeline}, not {flavour.pipeline}"
    else:
        says = f"its transformer's config says zero_cond_t {str(zero_cond_t).lower()}"
    fitting = [
        other.name
        for other in FLAVOURS.values()
        if (pipeline, zero_cond_t) == (other.pipeline, other.zero_cond_t_on_disk)
    ]
    raise WrongUse(
        f"model_flavour is {flavour.name}, but {source} is another model: {says}.",
        f"Set model_flavour to {' or '.join(fitting)}, or name a checkpoint of {flavour.name}."
        if fitting
        else f"Name a checkpoint of {flavour.name}, such as {flavour.repository}.",
    )
