"""Pictures that are one file: decoded once, whatever geometries they are wanted in.

A file is wanted in several where two datasets of different resolution share it, where it is a
target here and a reference there, and where previews show whole what training crops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from ...config.latent_geometry import LATENT_CHANNELS, latent_size
from ..encoding.work_split import cut
from ..samples.sample import Picture

BYTES_A_LATENT = 2 * LATENT_CHANNELS  # bfloat16

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OneFile:
    """Pictures of one content, each in another geometry."""

    pictures: tuple[Picture, ...]

    @property
    def first(self) -> Picture:
        """Return the picture whose file is opened."""
        return self.pictures[0]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Return the sizes that the pictures are resized to."""
        return tuple(picture.size for picture in self.pictures)


def parts_of(pictures: Mapping[str, Picture]) -> dict[str, list[list[str]]]:
    """Return by dataset the keys that are claimed and written together; the keys alone decide it.

    The keys of a file follow each other in the order of their sizes. The files of a part are
    wanted in the same sizes, and there are as many as `cut` takes together.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for key in sorted(pictures, key=lambda key: (pictures[key].size, key)):
        files[pictures[key].digest].append(key)
    alike: dict[tuple[str, tuple[Size, ...]], list[list[str]]] = defaultdict(list)
    for keys in files.values():
        sizes = tuple(pictures[key].size for key in keys)
        alike[pictures[keys[0]].dataset, sizes].append(keys)

    def file_bytes(keys: Sequence[str]) -> int:
        return sum(latent_bytes(pictures[key].size) for key in keys)

    parts: dict[str, list[list[str]]] = defaultdict(list)
    for dataset, sizes in sorted(alike):
        for part in cut(sorted(alike[dataset, sizes]), file_bytes):
            parts[dataset].append([key for keys in part for key in keys])
    return dict(parts)


def files_of(pictures: Mapping[str, Picture], keys: Sequence[str]) -> list[OneFile]:
    """Return the files that give the rows of `keys`, which are some of a part's in its order."""
    wanted = [pictures[key] for key in keys]
    by_content = groupby(wanted, key=lambda picture: picture.digest)
    return [OneFile(tuple(same)) for _, same in by_content]


def latent_bytes(size: Size) -> int:
    """Return how many bytes the latents of a picture of this size take."""
    return prod(latent_size(size)) * BYTES_A_LATENT
