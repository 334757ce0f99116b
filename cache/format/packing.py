"""Lossless compression of chunks: Zarr's `blosc` codec, zstd over bit-shuffled bfloat16.

The first bits of neighbouring values (sign and exponent) are much alike, the last ones are
noise. So bits of one place are put together before they are compressed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 1  # higher ones take longer and gain less than a hundredth
TYPE_BYTES = 2


def codec() -> dict[str, Any]:
    """Return the codec's entry in zarr.json."""
    return {
        "name": "blosc",
        "configuration": {
            "typesize": TYPE_BYTES,
            "cname": "zstd",
            "clevel": LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        },
    }


def packed(chunk: npt.NDArray[np.uint16]) -> bytes:
    """Return `chunk` (uint16) compressed; `unpack_into` restores it bit by bit."""
    from numcodecs import blosc

    return bytes(blosc.compress(chunk.reshape(-1).view("<u2"), b"zstd", LEVEL, blosc.BITSHUFFLE, 0))


def unpack_into(space: npt.NDArray[np.uint8], data: npt.NDArray[np.uint8]) -> None:
    """Fill `space` (uint8) with the chunk that was compressed to `data`.

    Raises:
        ValueError, RuntimeError: it was packed from something else.
    """
    from numcodecs import blosc

    if int.from_bytes(data[4:8].tobytes(), "little") != len(space):  # as its header says
        raise ValueError("the chunk has another length")
    blosc.decompress(data, space)
