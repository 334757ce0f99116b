"""Reads the files of a configuration: the user's own, or a shipped pair of them."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..cache.errors import Broken
from ..cache.regular_file import content_of
from .comments import NotJson, parse
from .mistakes import Mistake
from .spelling import did_you_mean, nearest

LARGEST_BYTES = 10_000_000
LARGEST_ALIKE_BYTES = 1_000_000  # of a file that may be meant
CONFIG_NAME, DATA_NAME = "config.json", "multidatabackend.json"


def example_names() -> list[str]:
    """Return the names of the shipped examples."""
    return sorted(folder.name for folder in _examples().iterdir() if folder.is_dir())


def example_folder(name: str) -> Traversable | Mistake:
    """Return the folder of a shipped example, or what is wrong with its name."""
    names = example_names()
    if name in names:
        return _examples() / name
    hint = did_you_mean(name, names)
    return Mistake(f"example={name}", f"is none of the examples: {', '.join(names)}{hint}")


def _examples() -> Traversable:
    return files("qedit.config") / "examples"


def read_json(
    file: Traversable,
    label: str,
    kind: type,
    *,
    beside: Path | None = None,
) -> Any | Mistake:
    """Return what the file holds, or why it cannot be read.

    Args:
        kind: the type that such a file holds: of files with nearly its name, one of these is meant.
        beside: a file in whose folder a missing one may lie instead.
    """
    try:
        value = parse(_text_of(file, LARGEST_BYTES))
        wanted = "one object in braces" if kind is dict else "one list of datasets in brackets"
        return value if isinstance(value, kind) else Mistake(label, f"must hold {wanted}")
    except FileNotFoundError:
        return Mistake(label, f"there is no such file{_alike(file, beside, kind)}")
    except OSError as error:
        return Mistake(label, f"cannot be read: {error.strerror}")
    except Broken as error:
        if file.is_dir():
            return Mistake(label, f"is a folder; name the file in it, like {label}/{CONFIG_NAME}")
        return Mistake(label, f"cannot be read: {error}")
    except UnicodeDecodeError:
        return Mistake(label, "is not a text in UTF-8")
    except NotJson as error:
        return Mistake(label, str(error))


def _text_of(file: Traversable, most_bytes: int) -> str:
    """Return the text of a file; of one on the disk, if it is regular and not too large."""
    if isinstance(file, Path):
        return content_of(file, most_bytes).decode("utf-8-sig")
    return file.read_text(encoding="utf-8-sig")


def _alike(file: Traversable, beside: Path | None, kind: type) -> str:
    """Ask for a file of nearly that name that does exist, or for the only one of its kind."""
    if beside is not None and (other := beside.parent / file.name).is_file():
        return f" (paths are relative to the working directory); did you mean {other}?"
    if not isinstance(file, Path) or not file.parent.is_dir():
        return ""
    fit = [other.name for other in file.parent.glob("*.json*") if _holds(other, kind)]
    close = nearest(file.name, fit) or (fit[0] if len(fit) == 1 else None)
    return f"; did you mean {file.parent / close}?" if close else ""


def _holds(path: Path, kind: type) -> bool:
    try:
        return isinstance(parse(_text_of(path, LARGEST_ALIKE_BYTES)), kind)
    except (OSError, ValueError, Broken):
        return False
