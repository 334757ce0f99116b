"""Pictures that were shown lately: a reference that many sets share is decoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from PIL import Image

MOST_BYTES = 128 << 20
CHANNELS = 3


class RecentPictures:
    """The last pictures by name, as many as `most_bytes` hold. Threads may share one."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._held_bytes = most_bytes, 0
        self._pictures: OrderedDict[str, Future[Image.Image]] = OrderedDict()
        self._turn = threading.Lock()

    def get(self, name: str, make: Callable[[], Image.Image]) -> Image.Image:
        """The picture called `name`; made unless it is here, or another thread is making it.

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
        """Of the oldest ones, until the rest is few enough; those in the making stay."""
        for name in [name for name, one in self._pictures.items() if one.done()]:
            if self._held_bytes <= self._most_bytes:
                return
            self._held_bytes -= _bytes_of(self._pictures.pop(name).result())


def _bytes_of(picture: Image.Image) -> int:
    return picture.width * picture.height * CHANNELS
