"""The quantised base, written tensor by tensor as the checkpoint is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import safetensors.torch
import torch
from torch import Tensor

from ...cache.files.atomic import new_folder, remove, write_bytes, write_json
from ...cache.files.fingerprint import digest_bytes
from ...cache.files.free_space import refuse_full_disk
from ...cache.files.lock import writer_lock
from ...cache.files.sealed import sealed
from ..estimates.memory import way_of
from ..frozen_base.modulation_table import wants_table
from ..frozen_base.quantized import CHECKSUMS_FILE, QUANTIZED_FILE, QuantizedBase
from ..models.checkpoint.config_values import config_in
from ..models.checkpoint.tensor_checksums import checksums_in
from ..models.device import best_device
from ..models.layers import sees_only_time
from ..models.memory_estimate.dimensions import Dimensions
from ..models.memory_estimate.memory import base_bytes
from ..models.quantization.quantize import PRECISIONS
from ..models.quantization.quantized_linear import quantize_layers, quantized_tensors
from ..models.weights.streaming import empty_transformer, tensors_in
from ..stage import Progress
from ..stores.pins import Pin, write_pins
from ..stores.run import Run

# So much is held in memory at a time beside the tensor in work.
FILE_BYTES = 1 << 28


def write_quantized(
    base: QuantizedBase, run: Run, progress: Progress, *, device: str, is_damaged: bool
) -> None:
    """Write `base` whole or not at all, once it is recorded that the run needs it.

    Args:
        is_damaged: whether to write it anew where it is there.

    Raises:
        WrongUse: the checkpoint lacks a tensor, or a package is missing.
        QeditError: there is no room.
        Locked: another process is making it.
    """
    settings, checkpoint = run.settings, run.checkpoint
    transformer = empty_transformer(checkpoint.transformer, zero_cond_t=checkpoint.zero_cond_t)
    precision = PRECISIONS[settings.base_model_precision]
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    layers = quantize_layers(transformer, precision)
    tabulated = wants_table(settings)
    wanted = {
        name
        for name in transformer.state_dict()
        if not (tabulated and sees_only_time(name.rpartition(".")[0]))
    }
    via = best_device(device) if settings.quantize_via == "accelerator" else torch.device("cpu")
    refuse_full_disk({base.folder: _count_bytes(run)}, what="the quantised base")
    with (
        writer_lock(base.folder.parent, doing="quantising the base"),
        progress.bar(len(wanted), "cache-base", unit="tensor") as advance,
    ):
        write_pins(run, base.folder.parent, [base.folder.name], Pin())
        if base.is_there() and not is_damaged:
            return  # another process has made it, just before the lock was free
        if base.folder.exists():
            remove(base.folder)
        tensors = tensors_in(
            checkpoint.transformer, remember=checkpoint.remember, wanted=wanted.__contains__
        )
        with new_folder(base.folder) as folder:
            read = _counted(tensors, advance)
            few_bits = quantized_tensors(read, layers, precision, dtype=dtype, via=via)
            digests, checksums = {}, {}
            for name, held in _files(few_bits):
                data = safetensors.torch.save(dict(held))
                write_bytes(folder / name, data)
                digests[name], checksums[name] = digest_bytes(data), checksums_in(data)
            write_json(folder / CHECKSUMS_FILE, sealed(checksums))
            write_json(folder / QUANTIZED_FILE, {**base.recipe, "files": digests})


def _counted(
    tensors: Iterable[tuple[str, Tensor]], advance: object
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        advance(1)  # type: ignore[operator]


def _files(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield tensors as they come, as many as fit into a file."""
    held: dict[str, Tensor] = {}
    number = 0
    for name, tensor in tensors:
        held[name] = tensor.cpu().contiguous()
        if sum(tensor.nbytes for tensor in held.values()) >= FILE_BYTES:
            yield f"base-{number:05}.safetensors", held
            held, number = {}, number + 1
    if held:
        yield f"base-{number:05}.safetensors", held


def _count_bytes(run: Run) -> int:
    """Return the bytes that are written, by the sizes in the transformer's configuration."""
    checkpoint = run.checkpoint
    config = config_in(checkpoint.transformer)
    sizes = Dimensions.of_config(config, zero_cond_t=checkpoint.zero_cond_t)
    return sum(base_bytes(sizes, way_of(run.settings)))
