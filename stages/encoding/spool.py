"""Pictures that one stage has decoded and resized for the next, within one `qedit run`.

`cache-vae` decodes every reference; `cache-embeds` wants the same pictures at another size.
While both belong to one run, the first leaves them here and the second takes them, pixel for
pixel what it would have made itself. A spool has a bound; what it does not hold is decoded
again. It belongs to its process, and goes with it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ...cache.errors import Damaged, NotComplete
from ...cache.files.atomic import LEFTOVER, make_folder, remove, sweep, unique_name
from ...cache.files.fingerprint import key_of
from ...cache.format.grid import SHARD_LENGTH
from ...cache.store.store_set import StoreSet
from ..samples.sample import Picture
from ..stores.recipes import PICTURES
from ..stores.row_kinds import RowKind

FOLDER = "spool"
MOST_BYTES = 8 << 30
SHARE_OF_DISK = 0.25
# Sides are multiples of 32 pixels: a token is as many bytes, two by two, as 32 x 32 pixels have.
PAIRS_OF_BYTES = 32 * 32 * 3 // 2


@contextmanager
def spool_in(cache_dir: Path) -> Iterator[Path]:
    """Make a folder for a spool of this process, and remove it when the block ends."""
    place = cache_dir / FOLDER
    sweep(place)
    folder = place / f"{unique_name()}{LEFTOVER}"
    try:
        yield folder
    finally:
        remove(folder)


class Spool:
    """Holds resized pictures by content and size. Threads may share one.

    Args:
        datasets: ids whose pictures come here.
        processes: how many share the bound.
        spared_bytes: of the disk, for what is still to be written besides.
    """

    def __init__(
        self,
        folder: Path,
        datasets: Iterable[str],
        *,
        processes: int = 1,
        spared_bytes: int = 0,
    ) -> None:
        self.store_set = StoreSet(
            dict.fromkeys(datasets, folder),
            {"rows": RowKind.PICTURES.value, "pictures": PICTURES},
            RowKind.PICTURES.layout,
        )
        make_folder(folder)
        free = max(0, shutil.disk_usage(folder).free - spared_bytes)
        self._left = int(min(MOST_BYTES, SHARE_OF_DISK * free)) // processes
        self._counting = threading.Lock()

    def row_of(self, shown: Image.Image) -> np.ndarray | None:
        """Return a picture as a row; None if the spool may not grow by it."""
        pixels = np.array(shown, dtype=np.uint8)
        tokens, rest = divmod(pixels.nbytes, 2 * PAIRS_OF_BYTES)
        if rest or tokens > SHARD_LENGTH:
            return None
        with self._counting:
            if pixels.nbytes > self._left:
                return None
            self._left -= pixels.nbytes
        return pixels.reshape(-1).view(np.uint16).reshape(-1, PAIRS_OF_BYTES)

    def take(self, picture: Picture) -> Image.Image | None:
        """Return the picture at the text encoder's size; None if it is not here whole."""
        key = spool_key(picture)
        if key not in self.store_set:
            return None
        assert picture.vl_size is not None, "references always have one"
        width, height = picture.vl_size
        try:
            row = self.store_set.read(key, dataset=picture.dataset)
        except (NotComplete, Damaged):  # it is decoded again
            return None
        return Image.fromarray(row.reshape(-1).view(np.uint8).reshape(height, width, 3))


def spool_key(picture: Picture) -> str:
    """Return the name of a picture as the vision language encoder sees it."""
    return key_of({"shown": picture.vl_part})
