"""The timesteps that bfloat16 can represent, and the keys of the rows made for them.

No torch: a run with nothing to do reads this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.files.fingerprint import key_of

Bits = int
"""A timestep as the model sees it: the bits of a bfloat16 in [0, 1]."""

ZERO: Bits = 0  # reference tokens of models with zero_cond_t are modulated at t = 0
CLOCK = np.float32(1000)  # the pipelines' clock: sigma 1 is timestep 1000


def every_timestep(*, lowest_sigma: float) -> list[Bits]:
    """Return the bits of every timestep that a sigma in [lowest_sigma, 1] can become, and of 0.

    The pipelines, and training, round sigma x 1000 to bfloat16 and divide by 1000 in it. A
    CPU divides; a GPU may multiply by the reciprocal, which can round otherwise: both are in.
    """
    bounds = np.array([lowest_sigma, 1], np.float32) * CLOCK
    lowest, highest = (int(bits) for bits in _rounded(bounds))
    clock = (np.arange(lowest, highest + 1, dtype=np.uint32) << 16).view(np.float32)
    becomes = np.concatenate([clock / CLOCK, clock * (np.float32(1) / CLOCK)])
    return sorted({ZERO, *_rounded(becomes).tolist()})


def shift_exponent(scheduler: Mapping[str, Any], target_tokens: int) -> float:
    """Return mu, with which sigmas are shifted by exp(mu): linear in the number of target tokens.

    It is `base_shift` at `base_image_seq_len` tokens and `max_shift` at `max_image_seq_len`, as
    in `calculate_shift` of diffusers' Qwen-Image pipelines, whose defaults stand where the
    scheduler is silent. References do not count.

    Args:
        scheduler: the contents of the checkpoint's scheduler_config.json.
    """
    least, least_tokens = scheduler.get("base_shift", 0.5), scheduler.get("base_image_seq_len", 256)
    most, most_tokens = scheduler.get("max_shift", 1.15), scheduler.get("max_image_seq_len", 4096)
    mu: float = least + (most - least) / (most_tokens - least_tokens) * (
        target_tokens - least_tokens
    )
    return mu


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return the bits of `values` rounded to bfloat16, ties to even; all positive and finite."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32)


def row_key(bits: Bits) -> str:
    """Return the key of the row of one timestep."""
    return key_of({"timestep_bits": bits})


def row_shape(*, blocks: int, width: int) -> tuple[int, int]:
    """Return (layers, channels) of a row: image and text of every block, then the final norm."""
    return 2 * blocks + 1, 6 * width  # shift, scale and gate, before attention and the MLP


def spared_bytes(*, blocks: int, width: int) -> int:
    """Return the bytes of bfloat16 weights that a modulation table saves in training."""
    modulation = 2 * blocks * 6 * width * (width + 1)
    final = 2 * width * (width + 1)
    embedder = width * (256 + 1) + width * (width + 1)
    return 2 * (modulation + final + embedder)
