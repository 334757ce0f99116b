"""What one picture file is: decoded once in full, digested, and remembered for the next run."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image

from ...cache.errors import Damaged
from ...cache.fingerprint import digest_bytes, digest_file
from ...cache.tables import read_table, write_table
from ..images import (
    BinaryFile,
    Unreadable,
    decode,
    has_sixteen_bits,
    is_see_through,
    on_background,
    orientation_of,
    os_reason,
    swaps_sides,
)
from .scan import File

# Its name changes when what is remembered, or how a picture is judged, changes.
MEMORY_FILE = "pictures-1.parquet"
BATCH_FILES = 32
SAVE_EVERY_SECONDS = 60.0
IN_MEMORY_BYTES = 1 << 26

# Reasons that may vanish without the file changing: asked again in every run.
PASSING_REASONS = frozenset({"permission_denied", "not_readable_now", "broken_link"})

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24
_MOVING_FORMATS = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file turned out to be: upright size and digest, or the reason it is no picture.

    `flags` are warning codes: exif_rotated, alpha, sixteen_bits, several_frames.
    """

    digest: str = ""
    width: int = 0
    height: int = 0
    flags: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""


_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("digest", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("flags", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Memory:
    """The facts of a dataset's pictures, kept from run to run in one Parquet file.

    A file of the same name, size and time is taken to be the same file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MEMORY_FILE
        self._known: dict[File, Facts] = {}
        self._changed = False
        try:
            rows = read_table(self.path).to_pydict()
        except (FileNotFoundError, Damaged):
            return  # a memory may be lost: every picture is looked at again
        files = map(File, rows["path"], rows["size_bytes"], rows["mtime_ns"])
        flags = (tuple(one.split()) for one in rows["flags"])
        facts = map(
            Facts, rows["digest"], rows["width"], rows["height"], flags, rows["reason"],
            rows["detail"],
        )  # fmt: skip
        self._known = dict(zip(files, facts, strict=True))

    def __contains__(self, file: File) -> bool:
        return file in self._known

    def __getitem__(self, file: File) -> Facts:
        return self._known[file]

    def learn(self, file: File, facts: Facts) -> None:
        """Remember `facts` of `file`."""
        self._known[file] = facts
        self._changed = True

    def forget_rejected(self) -> None:
        """Look again at every picture that was turned away."""
        kept = {file: facts for file, facts in self._known.items() if not facts.reason}
        self._changed |= len(kept) < len(self._known)
        self._known = kept

    def forget(self) -> None:
        """Look again at every picture."""
        self._changed |= bool(self._known)
        self._known = {}

    def keep_only(self, files: Iterable[File]) -> None:
        """Forget files that are not there any more, or not as they were."""
        there = self._known.keys() & set(files)
        if len(there) < len(self._known):
            self._known = {file: facts for file, facts in self._known.items() if file in there}
            self._changed = True

    def save(self) -> None:
        """Write what is known, in the order of paths; nothing if nothing was learnt."""
        if not self._changed:
            return
        rows = [
            (*file, one.digest, one.width, one.height, " ".join(one.flags), one.reason, one.detail)
            for file, one in sorted(self._known.items(), key=lambda item: item[0])
            if one.reason not in PASSING_REASONS
        ]
        columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA.names)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)
        ]
        write_table(self.path, pa.Table.from_arrays(arrays, schema=_SCHEMA))
        self._changed = False


@dataclass(frozen=True, slots=True)
class Task:
    """One picture that nothing is known of yet."""

    folder: Path
    memory: Memory
    file: File


def look_at(tasks: list[Task], advance: Callable[[int], None]) -> None:
    """Examine every task's picture on all cores; what is learnt survives an interruption."""
    memories = {id(task.memory): task.memory for task in tasks}
    saved = time.monotonic()
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="look-at")
    try:
        for batch, learnt in pool.map(_examine_batch, _batches(tasks)):
            for task, facts in zip(batch, learnt, strict=True):
                task.memory.learn(task.file, facts)
            advance(len(batch))
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                _save(memories)
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        _save(memories)


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def examine(path: Path) -> Facts:
    """Decode the picture at `path` in full and say what it is. Never raises for a bad file."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes == 0:
                return Facts(reason="zero_bytes", detail="the file is empty")
            if size_bytes > IN_MEMORY_BYTES:
                return _facts_of(file, digest=digest_file(path))
            data = file.read()
        return _facts_of(io.BytesIO(data), digest=digest_bytes(data))
    except Unreadable as error:
        return Facts(reason=error.reason, detail=error.detail)
    except OSError as error:
        return Facts(reason=os_reason(error), detail=error.strerror or str(error))


def _facts_of(file: BinaryFile, *, digest: str) -> Facts:
    start = file.read(_PNG_DEPTH_AT + 1)
    file.seek(0)
    with decode(file) as picture:
        orientation = orientation_of(picture)
        deep = has_sixteen_bits(picture)
        if deep:
            on_background(picture)  # raises where white is not known
        deep |= start.startswith(_PNG) and start[-1:] == b"\x10"
        flags = {
            "exif_rotated": orientation != 1,
            "alpha": is_see_through(picture),
            "sixteen_bits": deep,
            "several_frames": _has_several_frames(picture),
        }
        width, height = picture.size
        if swaps_sides(orientation):
            width, height = height, width
    return Facts(digest, width, height, tuple(flag for flag, there in flags.items() if there))


def _has_several_frames(picture: Image.Image) -> bool:
    if picture.format not in _MOVING_FORMATS:
        return False
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # frames after the first may be broken; the first is all that is used
        return True


def _examine_batch(batch: list[Task]) -> tuple[list[Task], list[Facts]]:
    return batch, [examine(task.folder / task.file.path) for task in batch]


def _batches(tasks: list[Task]) -> Iterator[list[Task]]:
    for start in range(0, len(tasks), BATCH_FILES):
        yield tasks[start : start + BATCH_FILES]


def _save(memories: Mapping[int, Memory]) -> None:
    for memory in memories.values():
        memory.save()
