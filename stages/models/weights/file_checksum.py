"""A checksum in the metadata of a safetensors file: of all of its header and of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....cache.errors import Broken
from ....cache.files.checksum import crc32c
from ....cache.files.failing_disk import bytes_of
from ....cache.files.fingerprint import canonical_json
from ....cache.files.json_file import object_in
from ..checkpoint.weights_header import packed

CHECKSUM = "crc32c"
METADATA = "__metadata__"


def with_checksum(data: bytes) -> bytes:
    """Return the safetensors file with a checksum, and a sorted header.

    The library writes metadata in an order that differs from process to process.
    """
    header, tensors = _parts(data)
    metadata = dict(header.get(METADATA, {}))
    metadata.pop(CHECKSUM, None)  # of the file that these were read from
    metadata[CHECKSUM] = _checksum({**header, METADATA: metadata}, tensors)
    return packed({**header, METADATA: metadata}) + tensors


def is_whole(path: Path) -> bool:
    """Return whether the file at `path` is as it was written; True for one without a checksum.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        header, tensors = _parts(bytes_of(path))
        metadata = dict(header.get(METADATA, {}))
        checksum = metadata.pop(CHECKSUM, None)
        return checksum in (None, _checksum({**header, METADATA: metadata}, tensors))
    except (Broken, ValueError, TypeError):
        return False


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the bytes of the tensors."""
    length = int.from_bytes(data[:8], "little")
    return object_in(data[8 : 8 + length]), data[8 + length :]


def _checksum(header: Mapping[str, Any], tensors: bytes) -> str:
    return f"{crc32c(canonical_json(header).encode()):08x}{crc32c(tensors):08x}"
