"""Pictures opened as `pair` saw them, and read ahead of the encoder that wants them."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..cache.errors import NotComplete
from ..cache.fingerprint import digest_bytes
from .images import open_upright
from .samples import Picture

Item = TypeVar("Item")
Result = TypeVar("Result")


def open_as_paired(folder: Path, picture: Picture) -> Image.Image:
    """Open `picture`, upright and composited, if its bytes are still those that were paired.

    A row is named by the bytes that `pair` saw: other bytes must never be stored under it.

    Raises:
        NotComplete: the file has changed or gone since `pair` looked at it.
    """
    path = folder / picture.path
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotComplete(
            f"{path} is gone since the pairs were made.",
            "Put it back, or run `qedit pair` again.",
        ) from None
    if digest_bytes(data) != picture.digest:
        raise NotComplete(
            f"{path} has changed since the pairs were made.", "Run `qedit pair` again."
        )
    return open_upright(io.BytesIO(data), name=str(path))


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 2
) -> Iterator[tuple[Item, Result]]:
    """Give each item with what `read` makes of it, in order, a few items ahead in threads.

    At most `2 * workers` results wait in memory. An exception in `read` is raised at its
    item's turn.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read-ahead") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
