"""A transformer written tensor by tensor as a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ....cache.files.atomic import new_folder, write_json
from .tensor_file import write_tensors

WEIGHTS = "diffusion_pytorch_model"
# So much is held in memory at a time.
FILE_BYTES = 1 << 30


def write_transformer(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, str],
) -> int:
    """Write `tensors` and `config` in diffusers' folder layout; return the tensors' bytes.

    The folder is there whole or not at all.

    Args:
        about: metadata of every file.
    """
    total = 0
    places: dict[str, str] = {}
    with new_folder(folder) as partial:
        for number, held in enumerate(_files(tensors), start=1):
            name = f"{WEIGHTS}-{number:05}.safetensors"
            write_tensors(partial / name, held, metadata={"format": "pt", **about})
            places |= dict.fromkeys(held, name)
            total += sum(tensor.nbytes for tensor in held.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(partial / f"{WEIGHTS}.safetensors.index.json", index)
        write_json(partial / "config.json", dict(config))
    return total


def _files(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        held[name] = tensor.cpu().contiguous()
        if sum(tensor.nbytes for tensor in held.values()) >= FILE_BYTES:
            yield held
            held = {}
    if held:
        yield held
