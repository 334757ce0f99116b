"""Pictures opened as `pair` saw them, for an encoder or for the loss's weights."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from PIL import Image

from ...cache.errors import Broken, NotComplete
from ...cache.files.fingerprint import digest_bytes
from ...cache.regular_file import content_of
from ..pictures.images import Unreadable, open_upright
from ..samples.sample import Picture
from .encoder import Unfit

MOST_BYTES = 128 << 20  # of recent pictures
CHANNELS = 3
# May pass by themselves, so they end a run and are no result.
PASSING = frozenset({"permission_denied", "not_readable_now"})


def bytes_as_paired(folder: Path, picture: Picture) -> io.BytesIO:
    """Read the file of `picture`, if its bytes are still those that were paired.

    A row is named by the bytes that `pair` saw: other bytes must never be stored under it.

    Raises:
        NotComplete: the file has changed or gone since `pair` looked at it.
    """
    path = folder / picture.path
    try:
        data = content_of(path)
    except Broken:
        data = b""
    except FileNotFoundError:
        raise NotComplete(
            f"{path} is gone since the pairs were made.",
            "Put it back, or run `qedit pair` again.",
        ) from None
    if digest_bytes(data) != picture.digest:
        raise NotComplete(
            f"{path} has changed since the pairs were made.", "Run `qedit pair` again."
        )
    return io.BytesIO(data)


def open_to_encode(folder: Path, picture: Picture) -> Image.Image:
    """Open `picture`, upright and composited, if its bytes are still those that were paired.

    Raises:
        NotComplete: the file has changed or gone since `pair` looked at it.
        Unfit: it cannot be decoded (`pair --quick` looks at headers alone).
    """
    data = bytes_as_paired(folder, picture)
    try:
        return open_upright(data, name=str(folder / picture.path))
    except Unreadable as error:
        if error.reason in PASSING:
            raise
        raise Unfit(error.reason, error.detail) from error


class RecentPictures:
    """Keeps the last pictures by name, as many as `most_bytes` hold. Threads may share one."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._held_bytes = most_bytes, 0
        self._pictures: OrderedDict[str, Future[Image.Image]] = OrderedDict()
        self._turn = threading.Lock()

    def get(self, name: str, make: Callable[[], Image.Image]) -> Image.Image:
        """Return the picture called `name`; `make` it unless it is here or being made.

        Raises what `make` raises; the picture is then made anew the next time.
        """
        with self._turn:
            here = name in self._pictures
            future = self._pictures.setdefault(name, Future())
            self._pictures.move_to_end(name)
        return future.result() if here else self._made(name, make, future)

    def _made(
        self, name: str, make: Callable[[], Image.Image], future: Future[Image.Image]
    ) -> Image.Image:
        try:
            picture = make()
        except BaseException as error:
            with self._turn:
                self._pictures.pop(name, None)
            future.set_exception(error)
            raise
        future.set_result(picture)
        with self._turn:
            self._held_bytes += _bytes_of(picture)
            self._let_go()
        return picture

    def _let_go(self) -> None:
        """Drop the oldest pictures until the rest is small enough; unfinished ones stay."""
        for name in [name for name, future in self._pictures.items() if future.done()]:
            if self._held_bytes <= self._most_bytes:
                return
            self._held_bytes -= _bytes_of(self._pictures.pop(name).result())


def _bytes_of(picture: Image.Image) -> int:
    return picture.width * picture.height * CHANNELS
