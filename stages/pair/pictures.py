"""Examination of picture files: each is decoded once in full, digested, and remembered."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from ...cache.files.fingerprint import digest_bytes, digest_file
from ..pictures.images import (
    BinaryFile,
    Unreadable,
    decode,
    has_sixteen_bits,
    header,
    is_see_through,
    on_background,
    orientation_of,
    os_reason,
    upright,
    upright_size,
)
from .perceptual_hash import is_black, look_of
from .picture_records import BLACK, FLAGS, NOT_DECODED, Facts, Memory

BATCH_FILES = 32
BATCHES_AHEAD = 4  # of each thread
SAVE_EVERY_SECONDS = 60.0
IN_MEMORY_BYTES = 1 << 26

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24
_MOVING_FORMATS = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")


@dataclass(frozen=True, slots=True)
class Task:
    """A picture of which nothing is known yet, at a place among the files of `memory`."""

    folder: Path
    memory: Memory
    place: int


Learnt = list[tuple[Task, Facts]]


def look_at(tasks: Iterable[Task], advance: Callable[[int], None]) -> None:
    """Examine every task's picture on all cores; what is learnt survives an interruption."""
    memories = set[Memory]()
    saved = time.monotonic()
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="look-at")
    try:
        for batch in _in_order(pool, tasks):
            for task, facts in batch:
                task.memory.learn(task.place, facts)
                memories.add(task.memory)
            advance(len(batch))
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                _save(memories)
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        _save(memories)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def examine(path: Path) -> Facts:
    """Decode the picture at `path` in full and say what it is. Never raises for a bad file."""
    return _examined(path, header_only=False)


def glance(path: Path) -> Facts:
    """Return the facts in the header alone; damage further on is not seen."""
    return _examined(path, header_only=True)


def _examined(path: Path, *, header_only: bool) -> Facts:
    digest = ""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes == 0:
                return Facts(reason="zero_bytes", detail="the file is empty")
            if size_bytes > IN_MEMORY_BYTES:
                digest = digest_file(path)
                return _facts_of(file, digest=digest, header_only=header_only)
            data = file.read()
        digest = digest_bytes(data)
        return _facts_of(io.BytesIO(data), digest=digest, header_only=header_only)
    except Unreadable as error:
        return Facts(digest=digest, reason=error.reason, detail=error.detail)
    except OSError as error:
        return Facts(reason=os_reason(error), detail=error.strerror or str(error))


def _facts_of(file: BinaryFile, *, digest: str, header_only: bool) -> Facts:
    start = file.read(_PNG_DEPTH_AT + 1)
    file.seek(0)
    picture, orientation = header(file) if header_only else _decoded(file)
    deep = has_sixteen_bits(picture)
    flags = {
        "exif_rotated": orientation != 1,
        "sixteen_bits": deep or _is_deep_png(start),
        NOT_DECODED: header_only,
    }
    look = 0
    if not header_only:
        seen = on_background(picture) if deep else picture  # raises where white is not known
        flags["alpha"] = is_see_through(picture)
        flags["several_frames"] = _has_several_frames(picture)
        flags[BLACK] = is_black(seen)
        look = look_of(upright(seen))
    width, height = upright_size(picture, orientation)
    return Facts(digest, width, height, tuple(flag for flag in FLAGS if flags.get(flag)), look=look)


def _decoded(file: BinaryFile) -> tuple[Image.Image, int]:
    picture = decode(file)
    return picture, orientation_of(picture)


def _is_deep_png(start: bytes) -> bool:
    return start.startswith(_PNG) and start[-1:] == b"\x10"


def _has_several_frames(picture: Image.Image) -> bool:
    if picture.format not in _MOVING_FORMATS:
        return False
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # frames after the first may be broken; the first is all that is used
        return True


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Task]) -> Iterator[Learnt]:
    """Yield batches of tasks with what was learnt; only a few are taken ahead of time."""
    remaining = iter(tasks)
    waiting: deque[Future[Learnt]] = deque()
    while batch := list(islice(remaining, BATCH_FILES)):
        waiting.append(pool.submit(lambda batch: [(task, _learnt(task)) for task in batch], batch))
        if len(waiting) > BATCHES_AHEAD * available_cores():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _learnt(task: Task) -> Facts:
    """Examine the file of `task`; one that only moved, or was only touched, is not decoded."""
    files = task.memory.files
    path = task.folder / files.paths[task.place]
    if contents := task.memory.contents_of_size(files.sizes_bytes[task.place]):
        try:
            known = contents.get(digest_file(path))
        except OSError:
            known = None  # examining it, below, gives the reason
        if known is not None:
            return known
    return glance(path) if task.memory.headers_suffice else examine(path)


def _save(memories: Iterable[Memory]) -> None:
    for memory in memories:
        memory.save()
