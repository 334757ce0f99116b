"""Seeded draws: every number is a function of the seed and of the place it is used at."""

from __future__ import annotations

import hashlib

import numpy as np

from ....cache.files.fingerprint import canonical_json


def stream(seed: int, *place: int | str) -> np.random.Generator:
    """Return the random stream of `place`: the same on every machine and after a resume.

    >>> stream(42, "noise", 7, 0).random() == stream(42, "noise", 7, 0).random()
    True
    """
    digest = hashlib.blake2b(canonical_json([seed, *place]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def seed_of(seed: int, *place: int | str) -> int:
    """Return one number of that stream, to seed another generator with."""
    return int(stream(seed, *place).integers(2**63))
