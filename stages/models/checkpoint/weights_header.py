"""Headers of safetensors files, read alone: what each tensor is, and where its bytes are.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from ....cache.errors import Broken, Damaged
from ....cache.files.fingerprint import canonical_json
from ....cache.regular_file import json_in, refuse_irregular
from .model_files import fetch_again, files_named, places_in, weight_files

# The library's own limit: more is no header.
MOST_HEADER_BYTES = 100_000_000
_BITS = {"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "BF16": 16} | {
    f"{kind}{bits}": bits for kind in "FIU" for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header describes it; `start` counts from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def label(self) -> bytes:
        """Everything but the numbers, as it counts in digests and checksums."""
        return canonical_json([self.name, self.dtype, list(self.shape)]).encode()


def packed(header: Mapping[str, Any]) -> bytes:
    """Return the first bytes of a safetensors file: the header's length (8 bytes), and the header.

    Its keys are sorted, so that equal headers give equal bytes, and blanks behind it align the
    tensors.
    """
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_entries(path: Path) -> tuple[TensorEntry, ...]:
    """Return the tensors of the safetensors file at `path`, in the order of its header.

    Reads the header alone, and that once as long as the file looks the same.

    Raises:
        Damaged: it is no such file, its header names bytes outside of it, or it is cut short.
    """
    stat = path.stat()
    return _entries(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the model in `folder`."""
    return {
        entry.name: entry.shape for path in weight_files(folder) for entry in tensor_entries(path)
    }


def refuse_damaged_weights(folder: Path, stem: str) -> None:
    """Raise if a file of the model called `stem` is not whole, or lacks a tensor of the index.

    Raises:
        Damaged: names the file.
    """
    there = {
        (path.name, entry.name)
        for path in files_named(folder, stem)
        for entry in tensor_entries(path)
    }
    for name, file in places_in(folder, stem).items():
        if (file, name) not in there:
            path = folder / file
            raise Damaged(f"{path} lacks {name}, which its index names.", fetch_again(path))


@lru_cache(maxsize=256)
def _entries(path: Path, size: int, *_: int) -> tuple[TensorEntry, ...]:
    try:
        refuse_irregular(path)
        with path.open("rb", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            is_header = 0 < length <= min(MOST_HEADER_BYTES, size - 8)
            header = file.read(length) if is_header else b""
        return entries_of(header, size)
    except (ValueError, KeyError, TypeError, AttributeError, Broken) as error:
        why = f": {error}" if type(error) is ValueError else ""
        raise Damaged(f"{path} is not a whole safetensors file{why}.", fetch_again(path)) from None


def entries_of(header: bytes, size: int) -> tuple[TensorEntry, ...]:
    """Return the tensors that `header` describes, of a file of `size` bytes.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, Broken: it is no header of such
            a file. A ValueError that is no child of it says why.
    """
    fields = json_in(header)
    fields.pop("__metadata__", None)
    begin = 8 + len(header)
    entries = tuple(_entry(name, about, begin) for name, about in fields.items())
    end = begin
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != end:
            raise ValueError(f"the bytes of {entry.name} do not follow those before them")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"it has {size} bytes, and its header promises {end}")
    return entries


def _entry(name: str, about: Any, begin: int) -> TensorEntry:
    shape, (start, stop) = about["shape"], about["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError(f"the shape or the place of {name} is not made of whole numbers")
    if 8 * (stop - start) != prod(shape) * _BITS[about["dtype"]]:
        raise ValueError(f"{name} does not have the bytes that its shape needs")
    return TensorEntry(name, about["dtype"], tuple(shape), begin + start, stop - start)
