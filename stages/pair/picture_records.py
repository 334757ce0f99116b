"""Records of a dataset's picture files, kept from run to run so that no file is decoded twice."""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.errors import Broken
from ...cache.files.atomic import write_bytes
from ...cache.format.tables import table_blocks, write_blocks
from .scan import Files

# Its name changes when what is remembered, or how a picture is judged, changes.
MEMORY_FILE = "pictures-5.parquet"

# Reasons that may vanish without the file changing: asked again in every run.
PASSING_REASONS = frozenset({"permission_denied", "not_readable_now", "broken_link"})
NOT_DECODED = "not_decoded"
BLACK = "black"  # all over: nothing is left of such a mask
FLAGS = ("exif_rotated", "alpha", "sixteen_bits", "several_frames", BLACK, NOT_DECODED)

PlacesArray = npt.NDArray[np.int64]

_DIGEST_BYTES = 16
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Facts:
    """The result of examining a file: upright size and digest, or the reason it is no picture.

    Attributes:
        flags: some of FLAGS, in their order.
        look: 64 bits that resemble those of pictures looking alike (see `perceptual_hash.py`).
    """

    digest: str = ""
    width: int = 0
    height: int = 0
    flags: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""
    look: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """The upright (width, height) in pixels."""
        return self.width, self.height


_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("digest", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("flags", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("look", pa.uint64()),
    ]
)
_FACTS = _SCHEMA.names[4:]  # those of `Facts`, in the same order
# One row of what is held of a sound picture; objects would be ten times larger.
_HELD = np.dtype(
    [
        ("known", "?"),
        ("flags", "u1"),
        ("width", "i4"),
        ("height", "i4"),
        ("look", "u8"),
        ("digest", f"V{_DIGEST_BYTES}"),
    ]
)


class Memory:
    """The facts of a dataset's pictures by their places, kept in one Parquet file.

    A file of the same name, size and times is taken to be the same file. Files of another name
    or time are known again by their size and content, and need not be decoded for that.

    Args:
        files: the pictures that are there now.
        headers_suffice: whether a picture of which only the header was read counts as known.
    """

    def __init__(self, folder: Path, files: Files, *, headers_suffice: bool = False) -> None:
        self.path, self.files, self.headers_suffice = folder / MEMORY_FILE, files, headers_suffice
        self._forget_all()
        try:
            for block in table_blocks(self.path):
                self._recall(block)
        except FileNotFoundError:
            return
        except (pa.ArrowException, OSError, Broken) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's own: not allowed, a broken disk
            self._forget_all()  # a damaged one may be lost: every picture is looked at again

    def known(self) -> npt.NDArray[np.bool_]:
        """Return for each place whether enough is known of the file there."""
        suffices = np.array([self._suffices(flags) for flags in _FLAGS_IN])
        known: npt.NDArray[np.bool_] = self._held["known"] & suffices[self._held["flags"]]
        return known

    def copies_among(self, places: PlacesArray) -> frozenset[str]:
        """Return the digests that several of the files at these places share."""
        digests, counts = np.unique(self._held["digest"][places], return_counts=True)
        return frozenset(digest.item().hex() for digest in digests[counts > 1])

    def __getitem__(self, place: int) -> Facts:
        if place in self._faulty:
            return self._faulty[place]
        _, flags, width, height, look, digest = self._held[place].item()
        return Facts(digest.hex(), width, height, _FLAGS_IN[flags], look=look)

    def learn(self, place: int, facts: Facts) -> None:
        """Remember `facts` of the file at `place`."""
        self._changed = True
        if facts.reason:
            self._held[place]["known"] = True
            self._faulty[place] = facts
            return
        self._faulty.pop(place, None)
        digest = bytes.fromhex(facts.digest)
        bits = _BITS_OF[" ".join(facts.flags)]
        self._held[place] = (True, bits, facts.width, facts.height, facts.look, digest)

    def contents_of_size(self, size_bytes: int) -> dict[str, Facts]:
        """Return digest -> facts of files of that size that went, moved or are not trusted."""
        return self._gone.get(size_bytes, {})

    def forget_rejected(self) -> None:
        """Have every picture that was rejected examined again, whatever its name is now."""
        for contents in self._gone.values():
            for digest in [digest for digest, facts in contents.items() if facts.reason]:
                del contents[digest]
        self._changed |= bool(self._faulty)
        self._held["known"][list(self._faulty)] = False
        self._faulty.clear()

    def suspect_all(self) -> None:
        """Have every file read again, whatever its name, size and time say."""
        for place in np.flatnonzero(self._held["known"]).tolist():
            self._expect(self.files.sizes_bytes[place], self[place])
        self._held["known"] = False
        self._faulty.clear()

    def save(self) -> None:
        """Write the records in the order of paths, if anything was learnt."""
        if not self._changed:
            return
        file = io.BytesIO()
        write_blocks(_SCHEMA, self._blocks(), write=file.write)
        if not self.path.is_file() or self.path.read_bytes() != file.getbuffer():
            write_bytes(self.path, file.getbuffer())
        self._changed = False

    def _forget_all(self) -> None:
        self._held = np.zeros(len(self.files), _HELD)
        self._faulty: dict[int, Facts] = {}
        self._gone: dict[int, dict[str, Facts]] = {}
        self._changed = False

    def _recall(self, rows: pa.Table) -> None:
        """Take in rows: facts of files that are as they were, and the contents of the others."""
        places = self._places_of(rows["path"])
        there = np.flatnonzero(places >= 0)
        for column, now in (
            ("size_bytes", self.files.sizes_bytes),
            ("mtime_ns", self.files.mtimes_ns),
            ("ctime_ns", self.files.ctimes_ns),
        ):
            is_same = rows[column].to_numpy()[there] == np.asarray(now)[places[there]]
            there = there[is_same]
        gone = np.ones(len(places), bool)
        gone[there] = False
        for size_bytes, facts in _remembered(rows.filter(pa.array(gone))):
            self._expect(size_bytes, facts)
        self._held["known"][places[there]] = True
        known = rows.take(pa.array(there))
        is_sound = pc.equal(known["reason"], "").to_numpy()
        self._hold(places[there[is_sound]], known.filter(pa.array(is_sound)))
        faulty = known.filter(pa.array(~is_sound))
        for place, (_, facts) in zip(
            places[there[~is_sound]].tolist(), _remembered(faulty), strict=True
        ):
            self._faulty[place] = facts

    def _places_of(self, paths: pa.ChunkedArray) -> PlacesArray:
        """Return the place of each path among the files; -1 for those that are not there."""
        least, most = pc.min_max(paths).as_py().values()
        start = bisect_left(self.files.paths, least)
        near = pa.array(self.files.paths[start : bisect_right(self.files.paths, most)], pa.string())
        found = pc.index_in(paths, value_set=near).to_numpy()
        return np.where(np.isnan(found), -1, found + start).astype(np.int64)

    def _hold(self, places: PlacesArray, rows: pa.Table) -> None:
        """Store the facts of sound pictures."""
        digests = bytes.fromhex("".join(rows["digest"].to_pylist()))
        held = np.zeros(len(places), _HELD)
        held["known"] = True
        held["flags"] = [_BITS_OF[flags] for flags in rows["flags"].to_pylist()]
        for name in ("width", "height", "look"):
            held[name] = rows[name].to_numpy()
        held["digest"] = np.frombuffer(digests, _HELD["digest"])
        self._held[places] = held

    def _expect(self, size_bytes: int, facts: Facts) -> None:
        """Remember a content that went from where it was: it may be found elsewhere."""
        self._changed = True
        if facts.digest and self._suffices(facts.flags):
            self._gone.setdefault(size_bytes, {})[facts.digest] = facts

    def _blocks(self) -> Iterator[pa.RecordBatch]:
        passing = [
            place for place, facts in self._faulty.items() if facts.reason in PASSING_REASONS
        ]
        kept = self._held["known"].copy()
        kept[passing] = False
        places = np.flatnonzero(kept)
        for start in range(0, len(places), _BLOCK_ROWS):
            block = places[start : start + _BLOCK_ROWS].tolist()
            rows = [(*self.files[place], *_cells(self[place])) for place in block]
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)

    def _suffices(self, flags: Iterable[str]) -> bool:
        return self.headers_suffice or NOT_DECODED not in flags


_FLAGS_IN = tuple(
    tuple(flag for place, flag in enumerate(FLAGS) if bits >> place & 1)
    for bits in range(1 << len(FLAGS))
)
_BITS_OF = {" ".join(flags): bits for bits, flags in enumerate(_FLAGS_IN)}


def _cells(facts: Facts) -> tuple[object, ...]:
    digest, width, height, flags, *rest = (getattr(facts, name) for name in _FACTS)
    return digest, width, height, " ".join(flags), *rest


def _remembered(rows: pa.Table) -> Iterator[tuple[int, Facts]]:
    """Yield the size of each file in bytes and its facts."""
    columns = (rows[name].to_pylist() for name in ("size_bytes", *_FACTS))
    for size_bytes, digest, width, height, flags, *rest in zip(*columns, strict=True):
        yield size_bytes, Facts(digest, width, height, tuple(flags.split()), *rest)
