"""What one picture file is: decoded once in full, digested, and remembered for the next run."""

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
    swaps_sides,
    upright,
)
from .perceptual_hash import is_black, look_of
from .picture_records import BLACK, NOT_DECODED, Facts, Memory

BATCH_FILES = 32
BATCHES_AHEAD = 4  # of each thread
SAVE_EVERY_SECONDS = 60.0
IN_MEMORY_BYTES = 1 << 26

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24
_MOVING_FORMATS = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")


@dataclass(frozen=True, slots=True)
class Task:
    """One picture that nothing is known of yet: at a place among the files of `memory`."""

    folder: Path
    memory: Memory
    place: int


def look_at(tasks: Iterable[Task], advance: Callable[[int], None]) -> None:
    """Examine every task's picture on all cores; what is learnt survives an interruption."""
    memories: dict[int, Memory] = {}
    saved = time.monotonic()
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="look-at")
    try:
        for batch, learnt in _in_order(pool, _batches(tasks)):
            for task, facts in zip(batch, learnt, strict=True):
                task.memory.learn(task.place, facts)
                memories[id(task.memory)] = task.memory
            advance(len(batch))
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                _save(memories.values())
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        _save(memories.values())


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def examine(path: Path) -> Facts:
    """Decode the picture at `path` in full and say what it is. Never raises for a bad file."""
    return _examined(path, _facts_of)


def glance(path: Path) -> Facts:
    """The same from the header alone: what is broken further on is not seen."""
    return _examined(path, _header_facts_of)


def _examined(path: Path, judge: Callable[..., Facts]) -> Facts:
    digest = ""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes == 0:
                return Facts(reason="zero_bytes", detail="the file is empty")
            if size_bytes > IN_MEMORY_BYTES:
                digest = digest_file(path)
                return judge(file, digest=digest)
            data = file.read()
        digest = digest_bytes(data)
        return judge(io.BytesIO(data), digest=digest)
    except Unreadable as error:
        return Facts(digest=digest, reason=error.reason, detail=error.detail)
    except OSError as error:
        return Facts(reason=os_reason(error), detail=error.strerror or str(error))


def _facts_of(file: BinaryFile, *, digest: str) -> Facts:
    start = file.read(_PNG_DEPTH_AT + 1)
    file.seek(0)
    with decode(file) as picture:
        orientation = orientation_of(picture)
        deep = has_sixteen_bits(picture)
        seen = on_background(picture) if deep else picture  # raises where white is not known
        flags = {
            "exif_rotated": orientation != 1,
            "alpha": is_see_through(picture),
            "sixteen_bits": deep or _is_deep_png(start),
            "several_frames": _has_several_frames(picture),
            BLACK: is_black(seen),
        }
        width, height = _upright_size(picture, orientation)
        look = look_of(upright(seen))
    known = tuple(flag for flag, there in flags.items() if there)
    return Facts(digest, width, height, known, look=look)


def _header_facts_of(file: BinaryFile, *, digest: str) -> Facts:
    start = file.read(_PNG_DEPTH_AT + 1)
    file.seek(0)
    picture, orientation = header(file)
    flags = {
        "exif_rotated": orientation != 1,
        "sixteen_bits": has_sixteen_bits(picture) or _is_deep_png(start),
        NOT_DECODED: True,
    }
    width, height = _upright_size(picture, orientation)
    return Facts(digest, width, height, tuple(flag for flag, there in flags.items() if there))


def _upright_size(picture: Image.Image, orientation: int) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if swaps_sides(orientation) else (width, height)


def _is_deep_png(start: bytes) -> bool:
    return start.startswith(_PNG) and start[-1:] == b"\x10"


def _has_several_frames(picture: Image.Image) -> bool:
    if picture.format not in _MOVING_FORMATS:
        return False
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # frames after the first may be broken; the first is all that is used
        return True


def _in_order(
    pool: ThreadPoolExecutor, batches: Iterable[list[Task]]
) -> Iterator[tuple[list[Task], list[Facts]]]:
    """Each batch with what was learnt, few of them ahead: `pool.map` would take all at once."""
    waiting: deque[Future[tuple[list[Task], list[Facts]]]] = deque()
    for batch in batches:
        waiting.append(pool.submit(_examine_batch, batch))
        if len(waiting) > BATCHES_AHEAD * available_cores():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _examine_batch(batch: list[Task]) -> tuple[list[Task], list[Facts]]:
    return batch, [_learnt(task) for task in batch]


def _learnt(task: Task) -> Facts:
    """What the file of `task` is; one that only moved, or was only touched, is not decoded."""
    files = task.memory.files
    path = task.folder / files.paths[task.place]
    if contents := task.memory.contents_of_size(files.sizes_bytes[task.place]):
        try:
            known = contents.get(digest_file(path))
        except OSError:
            known = None  # said below, with its reason
        if known is not None:
            return known
    return glance(path) if task.memory.headers_suffice else examine(path)


def _batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    remaining = iter(tasks)
    while batch := list(islice(remaining, BATCH_FILES)):
        yield batch


def _save(memories: Iterable[Memory]) -> None:
    for memory in memories:
        memory.save()
