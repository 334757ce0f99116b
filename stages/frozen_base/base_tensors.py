"""The tensors of the quantised base as training loads them: each is checked first."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..models.weights.streaming import checked_tensors
from .quantized import MAKE_ANEW, QuantizedBase


def base_tensors(base: QuantizedBase) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of `base`, one at a time, mapped from its files.

    Raises:
        Damaged: a file is missing or cut short, or a tensor is not as it was written; the
            message names `cache-base`, which makes the base anew.
    """
    for name, checksums in base.checksums().items():
        yield from checked_tensors(base.folder / name, checksums, again=MAKE_ANEW)
