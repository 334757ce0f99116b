"""The only code that creates, renames, syncs or removes: a file is there whole or not at all.

Everything else in qedit that writes asks here for a handle. What a killed process leaves is
named after it, so that the next one can tell leftovers from work in progress.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import NoRoom, QeditError
from .owner import Owner, is_dead, owner_in, this_process

LEFTOVER = ".partial"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# a place where there is none, a file in its way, a link that leads nowhere
NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN_DISK = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENOTCONN)

_count = itertools.count()


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Make `path` hold exactly `data`: a reader sees the old file or the new one."""
    with new_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Make `path` hold exactly `text`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Make `path` hold `value` as JSON that people can read."""
    write_text(path, readable_json(value))


def readable_json(value: Any) -> str:
    """Return `value` as qedit writes JSON files: indented, in the order given, no NaN."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def append_line(path: Path, line: str) -> None:
    """Add `line` and its end to a log, which readers take line by line.

    The one write that is not whole or not at all: a line without its end was cut off by a
    crash, and readers leave it out.
    """
    with _in_words(path), open(path, "ab") as file:
        file.write(f"{line}\n".encode())


@contextlib.contextmanager
def new_file(path: Path, *, named: Callable[[], str] | None = None) -> Iterator[BinaryIO]:
    """Hand out a file that becomes `path`, whole and on the disk, when the block ends well.

    When the block raises, `path` is what it was before.

    Args:
        named: says what the file is called in its folder, once it is written: a file that is
            named by its content.
    """
    with _in_words(path):
        make_folder(path.parent)
        partial = _leftover_of(path)
        try:
            with file_in_place(partial) as file:
                yield file
            partial.replace(path.with_name(named()) if named else path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Hand out an empty folder that becomes `path`, whole, when the block ends well.

    Raises:
        FileExistsError: there is a `path` already; `remove` it first if it may go.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, "a finished folder is never changed", str(path))
    with _in_words(path):
        make_folder(path.parent)
        partial = _leftover_of(path)
        partial.mkdir()
        try:
            yield partial
            _sync_tree(partial)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def file_in_place(path: Path) -> Iterator[BinaryIO]:
    """Hand out a file at `path` itself, which must not exist; on the disk when the block ends.

    For files that nobody trusts before something else, written later, says so. The folder is
    not synced: `sync_folder` does that once for all of its files.
    """
    with _in_words(path), _open_new(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def create(path: Path, data: bytes) -> bool:
    """Make `path` hold `data` if there is no such file; return whether it was created.

    Of any number of processes that try, one succeeds. Nobody ever sees the file half written,
    except on a file system without hard links.
    """
    with _in_words(path):
        make_folder(path.parent)
        partial = _leftover_of(path)
        try:
            with file_in_place(partial) as file:
                file.write(data)
            return _linked(partial, path)
        finally:
            partial.unlink(missing_ok=True)
            sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create the folder `path` and its parents, if they are missing."""
    with _in_words(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in NO_FOLDER:
                raise
            do = "Choose another folder."
            if error.errno in (errno.EEXIST, errno.ENOTDIR):
                do = "A file stands where a folder is wanted: move it, or choose another folder."
            raise QeditError(
                f"The folder {path} cannot be created ({error.strerror}).", do
            ) from error


def sync_folder(folder: Path) -> None:
    """Flush the names of the files in `folder` to the disk (fsync)."""
    with _in_words(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove the file or the tree at `path`, if it is there.

    A tree loses its name first: it is there whole, or it is not there. One that has lost it
    already goes as it is: names have an end.
    """
    with _in_words(path):
        if path.is_dir() and not path.is_symlink():
            gone = path if path.name.endswith(LEFTOVER) else _leftover_of(path)
            try:
                path.rename(gone)
            except OSError as error:  # a longer name may take room that a full disk has not
                if error.errno not in NO_ROOM:
                    raise
                gone = path
            shutil.rmtree(gone)
        else:
            path.unlink(missing_ok=True)


def rename(path: Path, name: str) -> None:
    """Rename the file or the tree at `path` within its folder, to a name not yet used there."""
    with _in_words(path):
        path.rename(path.with_name(name))
        sync_folder(path.parent)


def sweep(folder: Path) -> int:
    """Remove the leftovers of dead processes in `folder`; return how many files and trees."""
    if not folder.is_dir():
        return 0
    with _in_words(folder):
        return sum(_swept(path) for path in sorted(folder.iterdir()))


def sweep_tree(folder: Path) -> None:
    """Remove the leftovers of dead processes in `folder` and in every folder below it."""
    for where, _, _ in os.walk(folder):
        sweep(Path(where))


def unique_name() -> str:
    """Return a name that no other file ever has and that names this process."""
    return f"{this_process()}~{next(_count)}"


def owner_of(name: str) -> Owner | None:
    """Return the process in a `unique_name` or a leftover's name; None for other names."""
    named = re.fullmatch(rf"(?:\..*~)?([^~]+)~\d+(?:{re.escape(LEFTOVER)})?", name)
    return owner_in(named[1]) if named else None


def _swept(path: Path) -> bool:
    """Remove `path` if it is a leftover of a process that has ended; return whether it was."""
    owner = owner_of(path.name) if path.name.endswith(LEFTOVER) else None
    if owner is None or not is_dead(owner):
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another sweeper may be at it as well
    else:
        path.unlink(missing_ok=True)
    return True


def _leftover_of(path: Path) -> Path:
    """Return a unique temporary name beside `path` that names this process."""
    return path.with_name(f".{path.name}~{unique_name()}{LEFTOVER}")


def _meant(path: Path) -> Path:
    """Return the final path of a leftover; any other path unchanged."""
    named = re.fullmatch(rf"\.(.+)~[^~]+~\d+{re.escape(LEFTOVER)}", path.name)
    return path.with_name(named[1]) if named else path


def _open_new(path: Path) -> BinaryIO:
    return open(path, "xb")


def _linked(partial: Path, path: Path) -> bool:
    """Hard-link the finished file `partial` to `path`; return False if `path` exists."""
    try:
        os.link(partial, path)
    except FileExistsError:
        # a network file system that repeats a request says so of the link it has just made
        return partial.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _copied(partial, path)
    return True


def _copied(partial: Path, path: Path) -> bool:
    """Copy `partial` to `path`, for file systems without hard links (exFAT); False if it exists."""
    try:
        with file_in_place(path) as file:
            file.write(partial.read_bytes())
    except FileExistsError:
        return False
    return True


def _sync_tree(folder: Path) -> None:
    for where, _, names in os.walk(folder):
        for name in names:
            with open(Path(where, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(where))


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn OSErrors that a user can fix (full disk, no permission) into QeditErrors."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename  # of two names, what the first is to become
        path = _meant(Path(place) if isinstance(place, str) else path)
        if error.errno in NO_ROOM:
            raise NoRoom(
                f"There is no space left to write {path}.",
                "Make room and run the same command again: what is finished is kept.",
            ) from error
        if error.errno in BROKEN_DISK:
            what = f"{path} cannot be written: the disk fails ({error.strerror})."
            do = "Check the disk, or choose a folder on another one."
        elif error.errno in (errno.EISDIR, errno.ENOTEMPTY):
            what = f"{path} is a folder, where a file is wanted."
            do = "Move it away."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"{path} may not be written ({error.strerror})."
            do = "Change its permissions, or choose another folder."
        else:
            raise
        raise QeditError(what, do) from error
