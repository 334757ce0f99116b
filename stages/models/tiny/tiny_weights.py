"""Random weights for tiny models, loud enough that a wrong position or mask shows."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn


def draw_weights(model: nn.Module, *, seed: int) -> None:
    """Draw every tensor of `model` anew from the seed and its own name.

    A matrix is drawn with deviation gain / sqrt(fan in), a norm is 1, a bias small. The gains
    are such that outputs stay of order 1 and swapped positions, references or words
    change them by a tenth or more.
    """
    for name, parameter in model.named_parameters():
        generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        shape = tuple(parameter.shape)
        noise = generator.standard_normal(shape, dtype=np.float32)
        if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
            values = np.full(shape, _norm(name), np.float32)
        elif len(shape) == 1:
            values = 0.1 * noise
        else:
            values = noise * (_gain(name) / np.sqrt(np.prod(shape[1:], dtype=np.float32)))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def _norm(name: str) -> float:
    """Return the gain of a norm; those on queries and keys make attention sharp."""
    return 2.0 if name.endswith(_ATTENTION_NORMS) else 1.0


def _gain(name: str) -> float:
    return next((gain for part, gain in _GAINS if part in name), 1.0)


_ATTENTION_NORMS = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")
# The first that fits; 1 where none does.
_GAINS = (
    # attention that is sharp, and loud beside what a token says of itself
    ("q_proj", 2.0),
    ("k_proj", 2.0),
    ("qkv", 2.0),
    ("to_out", 4.0),
    ("to_add_out", 4.0),
    # gates of order 1
    ("_mod.", 2.0),
    ("timestep_embedder", 2.0),
    # one frame meets one of three taps in time, and SiLU halves what is left
    ("conv", 3.0),
    ("proj_out", 0.6),
)
