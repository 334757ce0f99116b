"""Flips bits of files, as failing disks and memory do."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its first byte's lowest."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip(path: Path, at: int) -> None:
    """Flip a bit of the byte at this place; from the end, if it is negative."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
