"""Models built tensor by tensor, so that memory never holds them twice.

Their modules are made without weights; whoever wants other modules in their places (quantised,
tabulated) puts them there; then the tensors are read one after the other, straight to where
they stay. What the model has no place for is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ....cache.errors import Damaged, WrongUse
from ..checkpoint.model_files import fetch_again, weight_files
from ..checkpoint.weights_header import TensorEntry, tensor_entries
from ..layers import fits_any, layers_named


def empty_model(build: Callable[[], nn.Module], folder: Path, kind: str) -> nn.Module:
    """Return the model that `build` makes from the configuration in `folder`, without weights.

    It is frozen and in eval mode. Its parameters are on the meta device, its buffers are real.

    Args:
        kind: of the model, for the message.

    Raises:
        WrongUse: the folder configures something else.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            model = build()
    except (OSError, ValueError) as error:
        raise WrongUse(
            f"{folder} cannot be loaded as {kind}: {str(error).splitlines()[0]}",
            "Check `pretrained_model_name_or_path` and the options that override its parts.",
        ) from error
    return model.eval().requires_grad_(False)


def empty_part(kind: Any, folder: Path, **config: Any) -> nn.Module:
    """Return `empty_model` for a model class of diffusers; `config` overrides its config.json."""

    def build() -> nn.Module:
        model: nn.Module = kind.from_config(
            kind.load_config(str(folder), local_files_only=True), **config
        )
        return model

    return empty_model(build, folder, kind.__name__)


def empty_transformer(folder: Path, *, zero_cond_t: bool) -> nn.Module:
    """Return the transformer that `folder` configures, without weights (see `empty_model`)."""
    from diffusers import QwenImageTransformer2DModel

    return empty_part(QwenImageTransformer2DModel, folder, zero_cond_t=zero_cond_t)


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    source: Path,
) -> nn.Module:
    """Give every parameter and buffer of `model` its tensor, on `device`.

    Parameters come to be of `dtype`; bits and scales of quantised weights stay as they are.

    Raises:
        WrongUse: `source` lacks a tensor, or has one of another shape.
    """
    wanted = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors:
        if name in wanted and wanted[name].shape == tensor.shape:
            kind = dtype if wanted[name].dtype.is_floating_point else tensor.dtype
            # a copy in any case: what is mapped from a file must not change with the file
            _put(model, name, tensor.to(device, kind, copy=True))
    _refuse_gaps(model, source)
    return model.to(device)  # small tables that came with the modules


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _refuse_gaps(model: nn.Module, source: Path) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    gaps = sorted(name for name, tensor in tensors.items() if tensor.is_meta)
    if gaps:
        raise WrongUse(
            f"{source} lacks weights of the model: {len(gaps)} tensors are missing or of "
            f"another shape, the first is {gaps[0]}.",
            "Download the checkpoint again, or name the folder of the right model.",
        )


# -- files -------------------------------------------------------------------------------


def tensors_in(
    folder: Path, *, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the model in `folder` that are `wanted`, one at a time.

    They are mapped from the files: bytes are read when they are copied.

    Raises:
        Damaged: a file is cut short or is no safetensors file.
    """
    for file, name in _names_in(folder):
        if wanted(name):
            yield name, file.get_tensor(name)


@contextmanager
def tensors_by_name(folder: Path) -> Iterator[Callable[[str], Tensor]]:
    """Hand out a function that returns the tensor of a name in `folder`, mapped from its file.

    Raises (the function):
        WrongUse: there is no such tensor.
    """
    with ExitStack() as opened:
        files: dict[str, Any] = {}
        for path in weight_files(folder):
            file = opened.enter_context(_opened(path))
            files |= dict.fromkeys(file.keys(), file)

        def tensor(name: str) -> Tensor:
            if name not in files:
                raise WrongUse(
                    f"{folder} lacks weights of the transformer: {name}.",
                    "Download the checkpoint again, or name the folder of the right model.",
                )
            found: Tensor = files[name].get_tensor(name)
            return found

        yield tensor


def _names_in(folder: Path) -> Iterator[tuple[Any, str]]:
    """Yield every tensor's name in `folder`, with the opened file that holds it."""
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                yield file, name


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise Damaged(f"{path} is not a safetensors file: {error}.", fetch_again(path)) from error


def count_numbers(folder: Path) -> int:
    """Return the number of parameters of the model in `folder`, by its files' headers."""
    return sum(prod(entry.shape) for entry in _entries_in(folder))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the model in `folder`, by its files' headers."""
    return {name: tuple(file.get_slice(name).get_shape()) for file, name in _names_in(folder)}


def layer_shapes(folder: Path, wanted: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each layer in `folder` that `wanted` selects, by file headers."""
    names = layers_named(wanted)
    shapes: dict[str, tuple[int, int]] = {}
    for entry in _entries_in(folder):
        layer, _, leaf = entry.name.rpartition(".")
        if leaf == "weight" and len(entry.shape) == 2 and fits_any(layer, names):
            shapes[layer] = entry.shape[0], entry.shape[1]
    return shapes


def _entries_in(folder: Path) -> Iterator[TensorEntry]:
    return (entry for path in weight_files(folder) for entry in tensor_entries(path))
