"""export: a LoRA file under the names that another tool reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..cache.errors import WrongUse
from ..cache.files.atomic import write_bytes
from .models.checkpoint.model_files import config_in
from .models.lora.lora_file import Lora, LowRank, Style, as_file, read_lora
from .models.weights.streaming import tensors_in
from .models.weights.transformer_folder import write_transformer

SUFFIX = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def export_lora(source: Path, to: Path, style: Style) -> Lora:
    """Write the LoRA `source`, of whatever style, to the file `to` in `style`.

    Raises:
        WrongUse: `source` is no LoRA, or `to` is there already or no .safetensors.
    """
    if to.suffix != SUFFIX:
        raise WrongUse(f"--to {to} is no .safetensors file.", f"Type `--to {_named_so(to)}`.")
    if to.exists():
        raise WrongUse(f"{to} is there already.", "Choose another file, or move it away.")
    lora = read_lora(source)
    write_bytes(to, as_file(lora, style))
    return lora


def _named_so(to: Path) -> Path:
    """Return `to` with .safetensors at its end; "cats-v1.5" has no ending to exchange."""
    if to.is_dir():
        return to / f"lora{SUFFIX}"
    return to.with_suffix(SUFFIX) if to.suffix in PICKLES else Path(f"{to}{SUFFIX}")


def merge_lora(source: Path, base: Path, to: Path) -> Lora:
    """Write the transformer in `base` with the LoRA `source` baked in to the folder `to`.

    bfloat16, one tensor in memory at a time.

    Args:
        base: a transformer's folder in diffusers' layout, or a checkpoint that has one.

    Raises:
        WrongUse: `source` is no plain LoRA of this transformer, `base` holds none or a
            quantised one, or `to` is there already.
    """
    if to.exists():
        raise WrongUse(f"{to} is there already.", "Choose another folder, or move it away.")
    folder = _transformer_in(base)
    config = config_in(folder)
    if "quantization_config" in config:
        raise WrongUse(
            f"--base {base} is quantised: what a LoRA adds would be rounded away.",
            "Name the checkpoint in bfloat16 that it was made of.",
        )
    lora = read_lora(source)
    if lora.metadata.get("zero_cond_t") == "true":  # edit-v2+ is trained so over another's config
        config["zero_cond_t"] = True
    tensors = merged(tensors_in(folder), lora, dtype=torch.bfloat16, source=folder)
    about = {
        key: lora.metadata[key] for key in ("flavour", "base", "steps") if key in lora.metadata
    }
    write_transformer(to, tensors, config=config, about=about)
    return lora


def merged(
    tensors: Iterable[tuple[str, Tensor]], lora: Lora, *, dtype: torch.dtype, source: Path
) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's `tensors` in `dtype`, with `lora` added to its layers.

    Sums are made in float32 and rounded once. One tensor is in memory at a time.

    Raises:
        WrongUse: `lora` has layers that the checkpoint has not, or of another shape.
    """
    left = dict(lora.layers)
    for name, tensor in tensors:
        pair = left.pop(name.removesuffix(".weight"), None) if name.endswith(".weight") else None
        yield name, (tensor if pair is None else _merged_weight(name, tensor, pair)).to(dtype)
    if left:
        raise WrongUse(
            f"The LoRA has {len(left)} layers that {source} has not, the first is {min(left)}.",
            "Name the checkpoint that the LoRA was trained on.",
        )


def _merged_weight(name: str, tensor: Tensor, pair: LowRank) -> Tensor:
    added = pair.up.float() @ pair.down.float() * pair.scale
    if added.shape != tensor.shape:
        raise WrongUse(
            f"The LoRA adds {list(added.shape)} to {name}, which is {list(tensor.shape)}.",
            "Name the checkpoint that the LoRA was trained on.",
        )
    return tensor.float() + added


def other_base_in_words(source: Path, base: Path) -> str | None:
    """Return a warning where the LoRA `source` was trained on other weights than `base`.

    None where they are the same, or where the LoRA's metadata do not say. Every byte of the base
    is read for it.

    Raises:
        WrongUse: `source` is no LoRA, or `base` holds no transformer.
    """
    from .models.checkpoint.digests import model_digest

    folder, about = _transformer_in(base), read_lora(source).metadata
    trained_on = about.get("base_digest")
    if trained_on is None or model_digest(folder, remember=None) == trained_on:
        return None
    named = ", ".join(about[key] for key in ("flavour", "base") if key in about)
    return (
        f"{source} was trained on other weights than {folder}"
        f"{f': on {named}' if named else ''}. The merged model may not do "
        "what the LoRA was trained for."
    )


def _transformer_in(base: Path) -> Path:
    folder = base / "transformer" if (base / "transformer").is_dir() else base
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise WrongUse(
            f"--base {base} is no transformer in diffusers' layout.",
            "Name the folder of the checkpoint that the LoRA was trained on.",
        )
    return folder
