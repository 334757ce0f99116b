"""Checksums of the tensors of a safetensors file, against which each is held as it is read.

Those of a file are one text: eight hex digits a tensor, in the order of the file's header. A
checksum covers the tensor's name, dtype and shape as well, so a changed header is noticed too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache.errors import Damaged
from ....cache.files.checksum import crc32c, crc32c_of_more
from .weights_header import TensorEntry, entries_of, tensor_entries

_DIGITS = 8


def checksum_of(entry: TensorEntry, blocks: Iterable[npt.NDArray[Any]]) -> str:
    """Return the checksum of a tensor, whose bytes are `blocks` one after another."""
    checksum = crc32c(entry.label)
    for block in blocks:
        checksum = crc32c_of_more(checksum, block)
    return f"{checksum:0{_DIGITS}x}"


def checksums_in(data: bytes) -> str:
    """Return the checksums of all tensors in `data`, the content of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    numbers = np.frombuffer(data, np.uint8)
    return "".join(
        checksum_of(entry, [numbers[entry.start : entry.start + entry.nbytes]])
        for entry in entries_of(data[8 : 8 + length], len(data))
    )


def expected_checksums(
    path: Path, checksums: str | None, *, again: str
) -> dict[str, tuple[TensorEntry, str]]:
    """Return what each tensor in the file at `path` was; nothing where that is not recorded.

    Args:
        again: what to do about a damaged file.

    Raises:
        Damaged: its header is not that of the recorded file.
    """
    if checksums is None:
        return {}
    entries = tensor_entries(path)
    if len(checksums) != _DIGITS * len(entries):
        raise Damaged(f"{path} is not as it was written.", again)
    parts = (checksums[place : place + _DIGITS] for place in range(0, len(checksums), _DIGITS))
    return {entry.name: (entry, part) for entry, part in zip(entries, parts, strict=True)}
