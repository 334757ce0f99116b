"""CRC-32C (Castagnoli), the checksum of Zarr's `crc32c` codec and of everything else here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

CRC_BYTES = 4
# So much is still near the processor when it is summed up after having been read or copied:
# half as fast again as to read all of it first.
PIECE_BYTES = 1 << 18


def crc32c(data: npt.NDArray[Any] | bytes) -> int:
    """The CRC-32C of `data`, a contiguous array or bytes."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return int(google_crc32c.value(data))


# The CRC-32C of what a first CRC-32C is of, followed by some bytes.
crc32c_of_more: Callable[[int, npt.NDArray[np.uint8]], int] = google_crc32c.extend
