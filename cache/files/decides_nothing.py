"""Files that decide nothing of a result: logs, pages, cards, estimates.

Whatever is wrong with one of them, no command ends for it: it counts as missing, one line says so,
and whoever writes it writes it anew. What stands in its place is set aside, never deleted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Broken
from ..regular_file import content_of
from .atomic import rename, write_text
from .json_file import object_in

MOST_BYTES = 1 << 29
NO_FILE = (FileNotFoundError, NotADirectoryError)

LOG = logging.getLogger("qedit")  # a command shows these lines as its warnings

_Read = TypeVar("_Read")


def read_if_whole(path: Path, parse: Callable[[bytes], _Read], otherwise: _Read) -> _Read:
    """Return what `parse` makes of the file at `path`; `otherwise` where there is none to read."""
    try:
        return parse(content_of(path, MOST_BYTES))
    except NO_FILE:
        return otherwise
    except (OSError, ValueError, Broken) as error:
        why = getattr(error, "strerror", None) or str(error)
        LOG.warning(f"{path} cannot be read ({why}): it decides nothing, and counts as missing.")
        return otherwise


def read_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`; an empty one where there is none to read."""
    return read_if_whole(path, object_in, {})


def put_text(path: Path, text: str) -> bool:
    """Make the file at `path` hold `text`; return whether it did not yet."""
    if path.is_file() and read_if_whole(path, bytes, b"") == text.encode():
        return False
    make_way(path)
    write_text(path, text)
    return True


def put_page(path: Path, text: str, *, mark: str) -> bool:
    """Do the same, but leave a page that somebody else wrote there: one without `mark`."""
    # without the zeros of UTF-16, which an editor may have saved it in
    before = read_if_whole(path, bytes, b"").replace(b"\0", b"").strip()
    if before and mark.encode() not in before:
        LOG.warning(f"{path} was not written by qedit, or was changed: it stays as it is.")
        return False
    return put_text(path, text)


def make_way(path: Path) -> None:
    """Set a folder aside that stands where the file `path` is to be written."""
    if path.is_dir():
        set_aside(path)


def set_aside(path: Path) -> None:
    """Give the file or folder at `path` another name, and say so."""
    names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
    name = next(name for name in names if not path.with_name(name).exists())
    rename(path, name)
    LOG.warning(f"{path} is damaged: it is now called {name}.")
