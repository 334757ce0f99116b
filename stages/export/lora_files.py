"""export: an adapter's file under the names that another tool reads."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor

from ...cache.errors import WrongUse
from ...cache.files.atomic import write_bytes
from ..models.lora.adapter_file import LOADS_IN
from ..models.lora.adapter_reading import NORMS, Adapter, Dora, read_adapter
from ..models.lora.lora_file import PREFIXES, Lora, LowRank, Style, as_file
from ..models.weights.file_checksum import with_checksum
from ..models.weights.streaming import tensors_by_name
from .merge import refuse_other_layers, refuse_target, transformer_in


def export_lora(source: Path, to: Path, style: Style, *, base: Path | None = None) -> int:
    """Write the LoRA, DoRA or LoKr `source` to the file `to` in `style`; return its layers.

    Args:
        base: the checkpoint that it was trained on, or its transformer's folder. A DoRA for
            ComfyUI needs it, because its norms are counted otherwise there.

    Raises:
        WrongUse: `source` is no adapter; `to` is there already or no .safetensors; the style has
            no names for this kind; a base is missing, given in vain, or not that of `source`.
    """
    refuse_target(to)
    adapter = read_adapter(source)
    needs_base = adapter.kind == "dora" and style == "comfyui"
    if needs_base and base is None:
        raise WrongUse(
            f"{source} is a DoRA: ComfyUI divides by the norms of the base's weights, and they "
            "are in the checkpoint alone.",
            "Add `--base CHECKPOINT`, the one that it was trained on.",
        )
    if base is not None and not needs_base:
        raise WrongUse(
            "--base is for --merge, and for a DoRA with --format comfyui.", "Leave it out."
        )
    if adapter.kind == "lora":
        layers = {
            name: layer for name, layer in adapter.layers.items() if isinstance(layer, LowRank)
        }
        write_bytes(to, as_file(Lora(layers, adapter.metadata), style))
    else:
        write_bytes(to, _file(adapter, style, source, base))
    return len(adapter.layers)


def _file(adapter: Adapter, style: Style, source: Path, base: Path | None) -> bytes:
    """Return a DoRA or LoKr as the bytes of a safetensors file of `style`."""
    if style == "kohya":
        raise WrongUse(
            f"{source} is a {adapter.kind}: kohya's tools have no names for it.",
            "Type `--format comfyui` or `--format diffusers`.",
        )
    tensors: dict[str, Tensor] = {}
    for layer, parts in _parts(adapter, base).items():
        name = PREFIXES[style] + layer
        tensors |= {f"{name}.{end}": tensor.contiguous() for end, tensor in parts.items()}
    metadata = {**adapter.metadata, "format": "pt", "lora_format": style}
    metadata["loads_in"] = "ComfyUI: Load LoRA" if style == "comfyui" else LOADS_IN[adapter.kind]
    return with_checksum(safetensors.torch.save(tensors, metadata))


def _parts(adapter: Adapter, base: Path | None) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each layer of a DoRA or LoKr by the ends of their names."""
    found = {
        name: dict(layer.parts)
        for name, layer in adapter.layers.items()
        if not isinstance(layer, LowRank)
    }
    if base is None:
        return found
    folder = transformer_in(base)
    refuse_other_layers(adapter, folder)
    with tensors_by_name(folder) as tensor:
        for name, layer in adapter.layers.items():
            if isinstance(layer, Dora):
                del found[name][NORMS]
                found[name]["dora_scale"] = layer.comfyui_scale(tensor(f"{name}.weight"))
    return found
