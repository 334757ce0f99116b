"""Moves and copies: a run is known by its random id, a folder by where it lay before.

    <output_dir>/run-id.json   the id of the run, and the folder that it was written in

The records of the run (`pins.py`) hold the same id. It decides no number of a result.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ...cache.errors import Broken, QeditError
from ...cache.files.atomic import readable_json
from ...cache.files.decides_nothing import put_text
from ...cache.files.sealed import read_sealed, sealed

RUN_ID_FILE = "run-id.json"


@dataclass(frozen=True)
class Move:
    """Two folders: what lay in `old` lies in `new` now. They are equal where nothing has moved."""

    old: Path
    new: Path

    @classmethod
    def between(cls, former: str | None, folder: Path) -> Move:
        """Return the move of `folder` from its `former` path: of the highest folder that moved."""
        old, new = Path(former or folder), folder
        with contextlib.suppress(OSError, ValueError):
            if old.samefile(new):
                return cls(new, new)
        while old.name == new.name and old != old.parent and new != new.parent:
            old, new = old.parent, new.parent
        return cls(old, new)

    def path(self, path: str) -> str:
        """Return where the file or folder that was at `path` lies if it moved as well."""
        is_inside = Path(path).is_relative_to(self.old)
        return str(self.new / Path(path).relative_to(self.old)) if is_inside else path

    def in_words(self, *, is_copy: bool) -> str:
        """Return a sentence that says it."""
        if is_copy:
            return f"{self.new} is a copy of {self.old}: each keeps what its own runs need."
        return f"{self.old} was moved to {self.new}: the records of its runs hold there."


def written_id(output_dir: Path) -> tuple[str, Path]:
    """Return the id in `output_dir` and the folder it was written in; "" where none can be read."""
    try:
        fields = read_sealed(output_dir / RUN_ID_FILE)
        return str(fields["id"]), Path(fields["output_dir"])
    except (OSError, Broken, KeyError, TypeError):
        return "", output_dir


def known_id(output_dir: Path) -> str:
    """Return the id of the run in `output_dir`; "" if it has none of its own.

    A folder that was copied holds the id of the run in the other one, which is still there.
    """
    found, place = written_id(output_dir)
    move = Move.between(str(place), output_dir)
    return "" if move.old != move.new and written_id(place)[0] == found else found


def keep_id(output_dir: Path, run_id: str) -> None:
    """Write the id of the run into its folder, if that is there and may be written."""
    if output_dir.is_dir():
        fields = sealed({"id": run_id, "output_dir": str(output_dir)})
        with contextlib.suppress(QeditError):
            put_text(output_dir / RUN_ID_FILE, readable_json(fields))
