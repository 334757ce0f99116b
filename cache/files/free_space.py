"""Disk space: the bytes of a tree, and the check for enough room before a stage writes."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from ..errors import QeditError

SPARE_BYTES = 64 << 20  # tables, manifests, and what else is going on


def refuse_full_disk(wanted: Mapping[Path, int], *, what: str) -> None:
    """Make sure that each folder's disk has room for the given number of bytes.

    Raises:
        QeditError: they have not; nothing has been written.
    """
    by_disk: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, count_bytes in wanted.items():
        by_disk[os.stat(nearest_there(folder)).st_dev].append((folder, count_bytes))
    for folders in by_disk.values():
        needed = sum(count_bytes for _, count_bytes in folders) + SPARE_BYTES
        free = shutil.disk_usage(nearest_there(folders[0][0])).free
        if needed > free:
            raise QeditError(
                f"{what} take about {needed / 1e9:.1f} GB, and the disk of {folders[0][0]} "
                f"has {free / 1e9:.1f} GB left.",
                "Make room, or choose another folder: `cache_dir`. `qedit gc` shows what of the "
                "caches is no longer needed.",
            )


def tree_bytes(folder: Path) -> int:
    """Return the bytes that all files below `folder` take; 0 if there is no such folder."""
    files = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files if file.exists())  # some are dead links


def nearest_there(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
