"""Load one part of a checkpoint: whole, in one precision, frozen, and without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...cache.errors import WrongUse


def load_part(
    kind: Any, folder: Path, *, dtype: torch.dtype, device: str | torch.device, **config: Any
) -> Any:
    """Load the model of class `kind` (diffusers' or transformers') that lies in `folder`.

    The weights are read from safetensors straight into `dtype`; the model is in eval mode
    and its parameters ask for no gradient. `config` overrides values of its config.json.

    Raises:
        WrongUse: the folder does not hold this model, or not all of its weights. The
            libraries would fill the gaps with random numbers.
    """
    with _quiet():
        try:
            model, report = kind.from_pretrained(
                str(folder),
                **{_dtype_option(kind): dtype},
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
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
    return "dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"


def _refuse_gaps(folder: Path, name: str, report: dict[str, Any]) -> None:
    gaps = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if gaps:
        raise WrongUse(
            f"{folder} lacks weights of {name}: {len(gaps)} tensors are missing or of another "
            f"shape, the first is {gaps[0]}.",
            "Download the checkpoint again, or name the folder of the right model.",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither library shows its own bars and notes while a part is loaded.

    What matters in their loading reports is checked above; progress is told by the stages.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
