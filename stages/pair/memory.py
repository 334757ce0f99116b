"""What is known of a dataset's picture files, kept from run to run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ...cache.atomic import write_bytes
from ...cache.errors import Damaged
from ...cache.tables import read_table, table_bytes
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
            rows = read_table(self.path).to_pydict()
        except (FileNotFoundError, Damaged):
            return  # a memory may be lost: every picture is looked at again
        files = map(File, rows["path"], rows["size_bytes"], rows["mtime_ns"])
        flags = (tuple(one.split()) for one in rows["flags"])
        facts = map(
            Facts, rows["digest"], rows["width"], rows["height"], flags, rows["reason"],
            rows["detail"], rows["look"],
        )  # fmt: skip
        self._known = dict(zip(files, facts, strict=True))

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
        rows = [
            (
                *file, one.digest, one.width, one.height, " ".join(one.flags), one.reason,
                one.detail, one.look,
            )
            for file, one in sorted(self._known.items(), key=lambda item: item[0])
            if one.reason not in PASSING_REASONS
        ]  # fmt: skip
        columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA.names)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)
        ]
        data = table_bytes(pa.Table.from_arrays(arrays, schema=_SCHEMA))
        if not self.path.is_file() or self.path.read_bytes() != data:
            write_bytes(self.path, data)
        self._changed = False

    def _suffices(self, facts: Facts) -> bool:
        return self.headers_suffice or NOT_DECODED not in facts.flags

    def _drop(self, files: Iterable[File]) -> None:
        for file in files:
            facts = self._known.pop(file)
            self._changed = True
            if facts.digest and self._suffices(facts):
                self._gone.setdefault(file.size_bytes, {})[facts.digest] = facts
