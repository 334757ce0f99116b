"""What is known of a dataset's picture files, kept from run to run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...cache.atomic import write_bytes
from ...cache.tables import table_blocks, write_blocks
from .scan import File

# Its name changes when what is remembered, or how a picture is judged, changes.
MEMORY_FILE = "pictures-3.parquet"

# Reasons that may vanish without the file changing: asked again in every run.
PASSING_REASONS = frozenset({"permission_denied", "not_readable_now", "broken_link"})
NOT_DECODED = "not_decoded"
BLACK = "black"  # all over: nothing is left of such a mask


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file turned out to be: upright size and digest, or the reason it is no picture.

    Attributes:
        flags: warning codes: exif_rotated, alpha, sixteen_bits, several_frames, black, not_decoded.
        look: 64 bits that resemble those of pictures looking alike (see `look.py`).
    """

    digest: str = ""
    width: int = 0
    height: int = 0
    flags: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    look: int = 0


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
        ("look", pa.uint64()),
    ]
)


_BLOCK_ROWS = 1 << 16


class Memory:
    """The facts of a dataset's pictures, kept in one Parquet file.

    A file of the same name, size and time is taken to be the same file. Files of another name
    or time are known again by their size and content, and need not be decoded for that.

    Args:
        headers_suffice: whether a picture of which only the header was read counts as known.
    """

    def __init__(self, folder: Path, *, headers_suffice: bool = False) -> None:
        self.path, self.headers_suffice = folder / MEMORY_FILE, headers_suffice
        self._known: dict[File, Facts] = {}
        self._gone: dict[int, dict[str, Facts]] = {}
        self._changed = False
        try:
            for block in table_blocks(self.path):
                self._known.update(_remembered(block.to_pydict()))
        except FileNotFoundError:
            return
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's own: not allowed, a broken disk
            self._known = {}  # a damaged one may be lost: every picture is looked at again

    def __contains__(self, file: File) -> bool:
        return file in self._known and self._suffices(self._known[file])

    def __getitem__(self, file: File) -> Facts:
        return self._known[file]

    def learn(self, file: File, facts: Facts) -> None:
        """Remember `facts` of `file`."""
        self._known[file] = facts
        self._changed = True

    def contents_of_size(self, size_bytes: int) -> dict[str, Facts]:
        """Digest -> facts of files of that size which went, moved or are no longer trusted."""
        return self._gone.get(size_bytes, {})

    def forget_rejected(self) -> None:
        """Look again at every picture that was turned away."""
        kept = {file: facts for file, facts in self._known.items() if not facts.reason}
        self._changed |= len(kept) < len(self._known)
        self._known = kept

    def suspect_all(self) -> None:
        """Trust no name, size or time: what every file holds is read again."""
        self._drop(list(self._known))

    def keep_only(self, files: Iterable[File]) -> None:
        """Forget files that are not there any more, or not as they were."""
        there = self._known.keys() & set(files)
        if len(there) < len(self._known):
            self._drop([file for file in self._known if file not in there])

    def save(self) -> None:
        """Write the memory, in the order of paths; nothing if nothing was learnt."""
        if not self._changed:
            return
        file = io.BytesIO()
        write_blocks(_SCHEMA, self._blocks(), write=file.write)
        if not self.path.is_file() or self.path.read_bytes() != file.getbuffer():
            write_bytes(self.path, file.getbuffer())
        self._changed = False

    def _blocks(self) -> Iterator[pa.RecordBatch]:
        files = sorted(file for file, one in self._known.items() if _is_kept(one))
        for start in range(0, len(files), _BLOCK_ROWS):
            block = files[start : start + _BLOCK_ROWS]
            rows = [_row(file, self._known[file]) for file in block]
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)

    def _suffices(self, facts: Facts) -> bool:
        return self.headers_suffice or NOT_DECODED not in facts.flags

    def _drop(self, files: Iterable[File]) -> None:
        for file in files:
            facts = self._known.pop(file)
            self._changed = True
            if facts.digest and self._suffices(facts):
                self._gone.setdefault(file.size_bytes, {})[facts.digest] = facts


def _is_kept(facts: Facts) -> bool:
    return facts.reason not in PASSING_REASONS


def _row(file: File, facts: Facts) -> tuple[object, ...]:
    return (
        *file, facts.digest, facts.width, facts.height, " ".join(facts.flags), facts.reason,
        facts.detail, facts.look,
    )  # fmt: skip


def _remembered(rows: Mapping[str, list[Any]]) -> Iterator[tuple[File, Facts]]:
    files = map(File, rows["path"], rows["size_bytes"], rows["mtime_ns"])
    flags = (tuple(one.split()) for one in rows["flags"])
    facts = map(
        Facts, rows["digest"], rows["width"], rows["height"], flags, rows["reason"],
        rows["detail"], rows["look"],
    )  # fmt: skip
    yield from zip(files, facts, strict=True)
