"""Loading one part of a checkpoint: whole, in one precision, frozen, without log output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....cache.errors import WrongUse


def load_part(
    kind: Any, folder: Path, *, dtype: torch.dtype, device: str | torch.device, **config: Any
) -> Any:
    """Load the model of class `kind` (diffusers' or transformers') that lies in `folder`.

    The weights are read from safetensors straight into `dtype` (transformers': straight to
    `device` as well, tensor by tensor); the model is in eval mode and its parameters ask for
    no gradient. `config` overrides values of its config.json.

    Raises:
        WrongUse: the folder does not hold this model, or not all of its weights. The
            libraries would fill the gaps with random numbers.
    """
    placed = {"device_map": {"": str(device)}} if _library(kind) == "transformers" else {}
    with _quiet(_library(kind)):
        try:
            model, report = kind.from_pretrained(
                str(folder),
                **{_dtype_option(kind): dtype},
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **placed,
                **config,
            )
        except (OSError, ValueError) as error:
            raise WrongUse(
                f"{folder} cannot be loaded as {kind.__name__}: {str(error).splitlines()[0]}",
                "Check `pretrained_model_name_or_path` and the options that override its parts.",
            ) from error
    _refuse_gaps(folder, kind.__name__, report)
    assert isinstance(model, nn.Module)
    return model.eval().requires_grad_(False).to(device)


def _dtype_option(kind: Any) -> str:
    return "dtype" if _library(kind) == "transformers" else "torch_dtype"


def _refuse_gaps(folder: Path, name: str, report: dict[str, Any]) -> None:
    gaps = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if gaps:
        raise WrongUse(
            f"{folder} lacks weights of {name}: {len(gaps)} tensors are missing or of another "
            f"shape, the first is {gaps[0]}.",
            "Download the checkpoint again, or name the folder of the right model.",
        )


def _library(kind: Any) -> str:
    return str(kind.__module__).partition(".")[0]


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Silence the progress bars and notes of `library` while a part is loaded.

    What matters in its loading report is checked above; progress is told by the stages. It is
    imported by its name: training loads a diffusers model, and must not import transformers.
    """
    logging = import_module(f"{library}.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
