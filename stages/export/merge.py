"""export: a transformer with an adapter baked in, for diffusers or as one file for ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cache.errors import WrongUse
from ..models.checkpoint.config_values import config_in
from ..models.checkpoint.weights_header import tensor_shapes
from ..models.lora.adapter_reading import Adapter, read_adapter
from ..models.lora.lora_file import lora_path
from ..models.weights.streaming import tensors_by_name
from ..models.weights.tensor_file import metadata_in, write_tensors
from ..models.weights.transformer_folder import write_transformer

# By a tensor of this name, and nothing else, ComfyUI knows that references stand at timestep 0.
_COMFYUI_ZERO_COND_T = "__index_timestep_zero__"
SUFFIX = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_TOLD = ("flavour", "base", "steps")  # of a result's metadata


def merge_lora(source: Path, base: Path, to: Path, *, for_comfyui: bool = False) -> int:
    """Write the transformer in `base` with the adapter `source` baked in; return its layers.

    bfloat16; sums are made in float32 and rounded once; one tensor is in memory at a time.

    Args:
        source: a LoRA, DoRA or LoKr.
        base: a transformer's folder in diffusers' layout, or a checkpoint that has one.
        to: a folder in diffusers' layout; with `for_comfyui` one safetensors file.

    Raises:
        WrongUse: `source` is no adapter of this transformer, `base` holds none or a quantised
            one, or `to` is there already.
    """
    if for_comfyui:
        refuse_target(to)
    elif to.exists():
        raise WrongUse(f"{to} is there already.", "Choose another name, or move it away.")
    folder = transformer_in(base)
    adapter = read_adapter(source)
    refuse_other_layers(adapter, folder)
    config = _config(base, folder)
    if (
        adapter.metadata.get("zero_cond_t") == "true"
    ):  # edit-v2+ is trained so over another's config
        config["zero_cond_t"] = True
    about = {key: adapter.metadata[key] for key in _TOLD if key in adapter.metadata}
    with _merging(folder, adapter) as merged:
        _write(folder, to, merged, config=config, about=about, for_comfyui=for_comfyui)
    return len(adapter.layers)


def export_transformer(source: Path, to: Path) -> None:
    """Write the transformer in `source` (a full run's result, a checkpoint) as ComfyUI's one file.

    Raises:
        WrongUse: `source` holds no transformer or a quantised one, or as `refuse_target`.
    """
    refuse_target(to)
    folder = transformer_in(source)
    first = min(folder.glob("*.safetensors"))
    about = {key: text for key, text in metadata_in(first).items() if key in _TOLD}
    with tensors_by_name(folder) as tensor:
        config = _config(source, folder)
        _write(folder, to, tensor, config=config, about=about, for_comfyui=True)


def _write(
    folder: Path,
    to: Path,
    tensor: Callable[[str], Tensor],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, str],
    for_comfyui: bool,
) -> None:
    """Write the tensors that `folder` has and `tensor` gives, in bfloat16."""
    shapes = tensor_shapes(folder)
    if not for_comfyui:
        tensors = ((name, tensor(name).to(torch.bfloat16)) for name in shapes)
        write_transformer(to, tensors, config=config, about=about)
        return
    if config.get("zero_cond_t"):
        shapes[_COMFYUI_ZERO_COND_T] = (0,)
    write_tensors(
        to,
        {name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
        values=lambda name: torch.empty(0) if name == _COMFYUI_ZERO_COND_T else tensor(name),
        metadata={"format": "pt", **about},
        dtype=torch.bfloat16,
    )


@contextmanager
def _merging(folder: Path, adapter: Adapter) -> Iterator[Callable[[str], Tensor]]:
    """Hand out a function that returns the tensor of a name in `folder`, with the adapter in it."""
    with tensors_by_name(folder) as tensor:

        def merged(name: str) -> Tensor:
            layer = (
                adapter.layers.get(name.removesuffix(".weight"))
                if name.endswith(".weight")
                else None
            )
            return tensor(name) if layer is None else layer.merged(tensor(name))

        yield merged


def refuse_other_layers(adapter: Adapter, folder: Path) -> None:
    """Raise unless the transformer in `folder` has every layer of `adapter`, in its shape.

    Raises:
        WrongUse: it lacks layers, or has one of another shape.
    """
    shapes = tensor_shapes(folder)
    missing = [name for name in adapter.layers if f"{name}.weight" not in shapes]
    if missing:
        raise WrongUse(
            f"The LoRA has {len(missing)} layers that {folder} has not, the first is "
            f"{min(missing)}.",
            "Name the checkpoint that the LoRA was trained on.",
        )
    for name, layer in adapter.layers.items():
        own = shapes[f"{name}.weight"]
        if own != layer.shape:
            raise WrongUse(
                f"The LoRA adds {list(layer.shape)} to {name}.weight, which is {list(own)}.",
                "Name the checkpoint that the LoRA was trained on.",
            )


def other_base_in_words(source: Path, base: Path) -> str | None:
    """Return a warning where the adapter `source` was trained on other weights than `base`.

    None where they are the same, or where its metadata do not say. Every byte of the base is
    read for it.

    Raises:
        WrongUse: `base` holds no transformer.
    """
    from ..models.checkpoint.digests import model_digest

    folder, about = transformer_in(base), metadata_in(lora_path(source))
    trained_on = about.get("base_digest")
    if trained_on is None or model_digest(folder, remember=None) == trained_on:
        return None
    named = ", ".join(about[key] for key in ("flavour", "base") if key in about)
    return (
        f"{source} was trained on other weights than {folder}"
        f"{f': on {named}' if named else ''}. The merged model may not do "
        "what the LoRA was trained for."
    )


def refuse_target(to: Path) -> None:
    """Raise unless a .safetensors file can be written new to `to`.

    Raises:
        WrongUse: it is there already, or its name ends otherwise.
    """
    if to.suffix != SUFFIX:
        raise WrongUse(f"--to {to} is no .safetensors file.", f"Type `--to {_named_so(to)}`.")
    if to.exists():
        raise WrongUse(f"{to} is there already.", "Choose another file, or move it away.")


def _named_so(to: Path) -> Path:
    """Return `to` with .safetensors at its end; "cats-v1.5" has no ending to exchange."""
    if to.is_dir():
        return to / f"lora{SUFFIX}"
    return to.with_suffix(SUFFIX) if to.suffix in PICKLES else Path(f"{to}{SUFFIX}")


def is_transformer(path: Path) -> bool:
    """Return whether `path` is a transformer's folder in diffusers' layout, or holds one."""
    return path.is_dir() and _transformer_at(path) is not None


def transformer_in(base: Path) -> Path:
    """Return the folder of the transformer in `base`: itself, or the one in it.

    Raises:
        WrongUse: there is none.
    """
    folder = _transformer_at(base)
    if folder is None:
        raise WrongUse(
            f"--base {base} is no transformer in diffusers' layout.",
            "Name the folder of the checkpoint that the LoRA was trained on.",
        )
    return folder


def _transformer_at(base: Path) -> Path | None:
    folder = base / "transformer" if (base / "transformer").is_dir() else base
    has_weights = any(folder.glob("*.safetensors"))
    return folder if (folder / "config.json").is_file() and has_weights else None


def _config(base: Path, folder: Path) -> dict[str, Any]:
    config = config_in(folder)
    if "quantization_config" in config:
        raise WrongUse(
            f"--base {base} is quantised: what a LoRA adds would be rounded away.",
            "Name the checkpoint in bfloat16 that it was made of.",
        )
    return config
