"""CRC-32C (Castagnoli), the checksum of Zarr's `crc32c` codec and of everything else here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from fastcrc.crc32 import iscsi  # what protocols call it

CRC_BYTES = 4
# So much is still near the processor when it is summed up after having been read or copied:
# half as fast again as to read all of it first.
PIECE_BYTES = 1 << 19

# arrays are buffers, which types cannot say before Python 3.12; `array.data` costs time
_iscsi: Callable[..., int] = iscsi


def crc32c(data: npt.NDArray[Any] | bytes) -> int:
    """Return the CRC-32C of `data`.

    Args:
        data: bytes, or a contiguous array of any shape and type.
    """
    return _iscsi(data)


def crc32c_of_more(checksum: int, data: npt.NDArray[np.uint8]) -> int:
    """Return the CRC-32C of the data that has `checksum`, followed by `data` (uint8)."""
    return _iscsi(data, checksum)
