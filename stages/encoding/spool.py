"""Pictures that one stage has decoded and resized for the next, within one `qedit run`.

`cache-vae` decodes every reference; `cache-embeds` wants the same pictures at another size.
While both belong to one run, the first leaves them here and the second takes them, pixel for
pixel what it would have made itself. A spool has a bound; what it does not hold is decoded
again. It belongs to its process, and goes with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ...cache.atomic import LEFTOVER, make_folder, remove, sweep, unique_name
from ...cache.fingerprint import key_of
from ...cache.part import Layout
from ..models.recipes import PICTURES
from ..samples import Picture
from ..stores import Shelf

FOLDER = "spool"
MOST_BYTES = 8 << 30
SHARE_OF_DISK = 0.25
# Sides are multiples of 32 pixels: so many pairs of bytes are half a row of 32.
PAIRS_OF_BYTES = 48
LAYOUT = Layout("pictures", ("token", "channel"), ragged=True)


@contextmanager
def spool_in(cache_dir: Path) -> Iterator[Path]:
    """A folder for a spool of this process, gone with all it holds when the block ends."""
    place = cache_dir / FOLDER
    sweep(place)
    folder = place / f"{unique_name()}{LEFTOVER}"
    try:
        yield folder
    finally:
        remove(folder)


class Spool:
    """Resized pictures by what they are. Threads may share one.

    Args:
        datasets: ids whose pictures come here.
        processes: how many share the bound.
    """

    def __init__(self, folder: Path, datasets: Iterable[str], *, processes: int = 1) -> None:
        self.shelf = Shelf(
            dict.fromkeys(datasets, folder), {"rows": "pictures", "pictures": PICTURES}, LAYOUT
        )
        make_folder(folder)
        free = shutil.disk_usage(folder).free
        self._left = int(min(MOST_BYTES, SHARE_OF_DISK * free)) // processes

    def row_of(self, shown: Image.Image) -> np.ndarray | None:
        """A picture as a row, if the spool may still grow by it."""
        pixels = np.array(shown, dtype=np.uint8)
        if pixels.nbytes % (2 * PAIRS_OF_BYTES) or pixels.nbytes > self._left:
            return None
        self._left -= pixels.nbytes
        return pixels.reshape(-1).view(np.uint16).reshape(-1, PAIRS_OF_BYTES)

    def take(self, picture: Picture) -> Image.Image | None:
        """The picture as the vision language encoder wants it, if it is here."""
        key = spool_key(picture)
        if key not in self.shelf:
            return None
        assert picture.vl_size is not None, "references always have one"
        width, height = picture.vl_size
        row = self.shelf.read(key, dataset=picture.dataset)
        return Image.fromarray(row.reshape(-1).view(np.uint8).reshape(height, width, 3))


def spool_key(picture: Picture) -> str:
    """Names a picture as the vision language encoder sees it."""
    return key_of({"shown": picture.vl_part})
