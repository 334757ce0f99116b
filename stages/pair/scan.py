"""The listing of a picture folder: its files, in an order that is the same on every machine."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..pictures.images import EXTENSIONS, os_reason

TEXT_EXTENSION = "txt"
# Pictures by their names, of formats that are not read: named, not passed over.
_UNSUPPORTED = frozenset(
    {"heic", "heif", "hif", "jxl", "svg", "pdf", "eps", "ai", "psd", "xcf", "kra", "tga", "exr"}
    | {"hdr", "dds", "ico", "raw", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"}
)

_LINES_AT_ONCE = 4096
_LAST_TIME_NS = 2**63 - 1


class Files:
    """Files in the order of their paths, each at its place in four columns.

    As columns, a million of them take 120 MB; as objects, twice that.

    Attributes:
        paths: relative to the listed folder, with "/".
        mtimes_ns: when they were changed; anybody can set that, archives and copies keep it.
        ctimes_ns: when they got their content, name or rights; only the system sets that.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.sizes_bytes, self.mtimes_ns, self.ctimes_ns = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[str, int, int, int]:
        return (
            self.paths[place],
            self.sizes_bytes[place],
            self.mtimes_ns[place],
            self.ctimes_ns[place],
        )

    def __iter__(self) -> Iterator[tuple[str, int, int, int]]:
        return zip(self.paths, self.sizes_bytes, self.mtimes_ns, self.ctimes_ns, strict=True)

    def add(self, path: str, facts: os.stat_result, link: os.stat_result) -> None:
        """Add a file behind the others; `sort` brings it to its place.

        Args:
            facts: of the file.
            link: of the link that leads to it, else of the file again. A link that is made to
                lead elsewhere is a new file.
        """
        self.paths.append(path)
        self.sizes_bytes.append(facts.st_size)
        self.mtimes_ns.append(_held(facts.st_mtime_ns))
        self.ctimes_ns.append(_held(max(facts.st_ctime_ns, link.st_ctime_ns)))

    def sort(self) -> None:
        """Bring all of them into the order of their paths."""
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        self.paths = [self.paths[place] for place in order]
        self.sizes_bytes, self.mtimes_ns, self.ctimes_ns = (
            array("q", [column[place] for place in order])
            for column in (self.sizes_bytes, self.mtimes_ns, self.ctimes_ns)
        )


def _held(time_ns: int) -> int:
    """Return a time as 64 bits hold it: some file systems keep times of thousands of years."""
    return max(-_LAST_TIME_NS, min(time_ns, _LAST_TIME_NS))


class Problem(NamedTuple):
    """Something in a folder that cannot be used, with a reason code and the reason in words."""

    path: str
    reason: str
    detail: str


@dataclass
class Scan:
    """The content of a folder.

    Attributes:
        pictures, texts: in the order of their paths; where a picture stands is its place.
        problems: what looks like a picture by its name and can never be one.
        skipped_links: linked folders that lead to where another path has led already.
        others: how many files of other kinds there are, by the ends of their names.
    """

    folder: Path
    pictures: Files = field(default_factory=Files)
    texts: Files = field(default_factory=Files)
    problems: list[Problem] = field(default_factory=list)
    skipped_links: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def digest_into(self, digest: hashlib.blake2b) -> None:
        """Add the names, sizes and times of all files to `digest`, not where the folder lies."""
        for files in (self.pictures, self.texts):
            lines = (f"{path}\0{size} {mtime} {ctime}\n" for path, size, mtime, ctime in files)
            while block := "".join(islice(lines, _LINES_AT_ONCE)):
                digest.update(block.encode())
        digest.update(repr(self.problems).encode("utf-8", "backslashreplace"))


def scan(folder: Path) -> Scan:
    """List the pictures and texts under `folder`; hidden files and folders are skipped.

    Every folder is entered once, real ones before linked ones, so a loop of links ends.
    """
    found = Scan(folder)
    entered: set[tuple[int, int]] = set()
    linked = _enter(found, "", entered)
    while linked:
        linked.sort(reverse=True)
        linked += _enter(found, linked.pop(), entered)
    found.pictures.sort()
    found.texts.sort()
    found.problems.sort()
    found.skipped_links.sort()
    return found


def shown(path: str) -> str:
    """Return `path` as text that every file and terminal takes; bytes beyond UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Return `text` on one line: a file name may hold line breaks or terminal commands.

    >>> printable("new\\nline")
    'new\\\\nline'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _enter(found: Scan, start: str, entered: set[tuple[int, int]]) -> list[str]:
    """Scan `start` (relative) and the real folders below it; return the linked ones."""
    linked: list[str] = []
    waiting = [start]
    while waiting:
        inside = waiting.pop()
        try:
            here = os.stat(found.folder / inside)
            if (here.st_dev, here.st_ino) in entered:
                found.skipped_links.append(shown(inside))
                continue
            entered.add((here.st_dev, here.st_ino))
            with os.scandir(found.folder / inside) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    path = f"{inside}/{name}" if inside else name
                    if _is_folder(entry):
                        (linked if entry.is_symlink() else waiting).append(path)
                    else:
                        _add_file(found, entry, path)
        except OSError as error:
            _add_problem(found, inside or ".", error)
    return linked


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: no folder; as a file it is judged next
        return False


def _add_file(found: Scan, entry: os.DirEntry[str], path: str) -> None:
    stem, _, extension = entry.name.lower().rpartition(".")
    extension = extension if stem else ""  # a file called `raw` has none
    if extension in _UNSUPPORTED:
        detail = f"files ending in .{extension} are not read"
        found.problems.append(Problem(shown(path), "unsupported_format", detail))
        return
    is_picture = extension in EXTENSIONS
    if not is_picture and extension != TEXT_EXTENSION:
        found.others[shown(f".{extension}" if "." in entry.name else entry.name)] += 1
        return
    try:
        facts = entry.stat()
        link = entry.stat(follow_symlinks=False)
    except OSError as error:
        _add_problem(found, path, error)
        return
    if not is_picture:
        if _is_utf8(path):
            found.texts.add(path, facts, link)
    elif not stat.S_ISREG(facts.st_mode):
        found.problems.append(Problem(shown(path), "not_a_picture", "not a regular file"))
    elif not _is_utf8(path):
        found.problems.append(
            Problem(shown(path), "name_not_utf8", "a file or folder name that is not UTF-8")
        )
    else:
        found.pictures.add(path, facts, link)


def _add_problem(found: Scan, path: str, error: OSError) -> None:
    reason = "broken_link" if isinstance(error, FileNotFoundError) else os_reason(error)
    found.problems.append(Problem(shown(path), reason, error.strerror or str(error)))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
