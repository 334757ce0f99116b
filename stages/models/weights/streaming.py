"""Models built tensor by tensor, so that memory never holds them twice.

Their modules are made without weights; whoever wants other modules in their places (quantised,
tabulated) puts them there; then the tensors are read one after the other, straight to where
they stay. What the model has no place for is not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ....cache.errors import Damaged, WrongUse
from ..checkpoint.config_values import as_wrong_use
from ..checkpoint.digests import recorded_checksums
from ..checkpoint.model_files import fetch_again, weight_files
from ..checkpoint.tensor_checksums import checksum_of, expected_checksums
from ..checkpoint.weights_header import tensor_shapes
from ..layers import fits_any, layers_named

CHECKED_AHEAD = 4  # tensors of a file


def empty_model(build: Callable[[], nn.Module], folder: Path, kind: str) -> nn.Module:
    """Return the model that `build` makes from the configuration in `folder`, without weights.

    It is frozen and in eval mode. Its parameters are on the meta device, its buffers are real.

    Args:
        kind: of the model, for the message.

    Raises:
        WrongUse: the folder configures something else.
    """
    from accelerate import init_empty_weights

    with as_wrong_use(folder, kind), init_empty_weights(include_buffers=False):
        model = build()
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
    folder: Path,
    *,
    remember: Path | None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the model in `folder` that are `wanted`, one at a time.

    They are mapped from the files, and each is held against the checksum that is recorded of it.

    Args:
        remember: the file in which `model_digest` recorded checksums; None: nothing is checked.

    Raises:
        Damaged: a file is cut short, is no safetensors file, or not as it was when it was
            first read.
    """
    for path in weight_files(folder):
        checksums = recorded_checksums(path, remember)
        yield from checked_tensors(path, checksums, again=fetch_again(path), wanted=wanted)


def checked_tensors(
    path: Path,
    checksums: str | None,
    *,
    again: str,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file that are `wanted`, each once it is checked.

    Args:
        checksums: those of its tensors; None: nothing is checked.
        again: what to do about a damaged file.

    Raises:
        Damaged: the file, or one of the tensors, is not as it was written.
    """
    with _opened(path, checksums, again) as (every, tensor), ThreadPoolExecutor(1) as pool:
        names = [name for name in every if wanted(name)]
        # the next ones are checked while the caller copies this one
        checks = deque(pool.submit(tensor, name) for name in names[:CHECKED_AHEAD])
        for place, name in enumerate(names, start=CHECKED_AHEAD):
            checks.extend(pool.submit(tensor, one) for one in names[place : place + 1])
            yield name, checks.popleft().result()


@contextmanager
def tensors_by_name(
    folder: Path, *, remember: Path | None = None
) -> Iterator[Callable[[str], Tensor]]:
    """Hand out a function that returns the tensor of a name in `folder`, mapped from its file.

    Args:
        remember: as in `tensors_in`.

    Raises (the function):
        WrongUse: there is no such tensor.
        Damaged: it is not as it was when it was first read.
    """
    with ExitStack() as opened:
        read: dict[str, Callable[[str], Tensor]] = {}
        for path in weight_files(folder):
            file = _opened(path, recorded_checksums(path, remember), fetch_again(path))
            names, tensor_in = opened.enter_context(file)
            read |= dict.fromkeys(names, tensor_in)

        def tensor(name: str) -> Tensor:
            if name not in read:
                raise WrongUse(
                    f"{folder} lacks weights of the transformer: {name}.",
                    "Download the checkpoint again, or name the folder of the right model.",
                )
            return read[name](name)

        yield tensor


@contextmanager
def _opened(
    path: Path, checksums: str | None, again: str
) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Hand out the names in a file, and a function that returns a tensor once it is checked."""
    expected = expected_checksums(path, checksums, again=again)
    try:
        opened = safe_open(path, "pt")
    except SafetensorError as error:
        raise Damaged(f"{path} is not a safetensors file: {error}.", again) from error
    with opened as file:

        def tensor(name: str) -> Tensor:
            found: Tensor = file.get_tensor(name)
            if expected:
                entry, checksum = expected[name]
                if checksum_of(entry, [found.reshape(-1).view(torch.uint8).numpy()]) != checksum:
                    raise Damaged(f"{path} is damaged: {name} is not as it was written.", again)
            return found

        yield list(file.keys()), tensor


def count_numbers(folder: Path) -> int:
    """Return the number of parameters of the model in `folder`, by its files' headers."""
    return sum(map(prod, tensor_shapes(folder).values()))


def layer_shapes(folder: Path, wanted: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each layer in `folder` that `wanted` selects, by file headers."""
    names = layers_named(wanted)
    shapes: dict[str, tuple[int, int]] = {}
    for name, shape in tensor_shapes(folder).items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(shape) == 2 and fits_any(layer, names):
            shapes[layer] = shape[0], shape[1]
    return shapes
