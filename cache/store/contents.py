"""The contents of a store as last looked up: from the indices, then part by part.

Rows move while others read (`repacking.py`): a part may go while its table is read. Those it
went for were there before it went, so that who looks until there is nothing new misses none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Set
from pathlib import Path

from ..errors import Broken, Damaged
from ..files.atomic import LEFTOVER
from ..format.index import indices_in, read_index, replace_indices
from ..format.listing import Rows
from ..format.part import Layout, read_part


class Contents:
    """The rows of the store at `path`. Threads may share it.

    Nothing is looked up before `rows` is asked for.
    """

    def __init__(self, path: Path, layout: Layout, *, store: str) -> None:
        self._path, self._layout, self._store = path, layout, store
        self._known: Rows | None = None
        self._indexed: set[str] = set()
        self._left_out: set[str] = set()
        self._looking = threading.RLock()

    def rows(self) -> Rows:
        """Return the rows, looked up once. The object handed out only ever grows."""
        if self._known is None:
            with self._looking:
                if self._known is None:
                    self._known = self._looked_up()
        return self._known

    def refresh(self) -> bool:
        """Look up what others have added or removed meanwhile; return whether they have."""
        with self._looking:
            if self._known is None:
                self.rows()
                return True
            here = self._known.parts.keys()
            if here - self._names():
                self._known = self._looked_up()  # aside: others read what was known before
                return True
            return self._admit_new(self._known, looked_at=set(here)) > 0

    def admit(self, name: str) -> None:
        """Take in the part called `name`, which this process has just written."""
        with self._looking:
            known = self.rows()
            if name not in known.parts:  # looked up this very moment
                self._admit([name], known)

    def leave_out(self, names: Set[str]) -> None:
        """Treat the rows of the parts called `names` as missing from now on."""
        with self._looking:
            self._left_out |= names
            self._known = self._looked_up()

    def part_names(self) -> set[str]:
        """Return the names of all parts, unfinished ones too."""
        try:
            names = os.listdir(self._path / "parts")
        except FileNotFoundError:
            return set()
        return {name for name in names if not name.endswith(LEFTOVER)}

    def in_indices(self) -> set[str]:
        """Return the names of the parts that the indices list: those were complete once."""
        listings = (read_index(path, store=self._store) for path in indices_in(self._path))
        return {name for listing in listings if listing is not None for name in listing.names}

    def keep_index(self, unlisted: int) -> None:
        """Write a new index if more than `unlisted` parts are in none."""
        with self._looking:
            known = self.rows()
            if len(known.parts) - len(self._indexed) <= unlisted:
                return
            listing = known.listing()
            assert listing is not None
            replace_indices(self._path, listing, store=self._store)
            self._indexed = set(known.parts)

    def _names(self) -> set[str]:
        return self.part_names() - self._left_out

    def _looked_up(self) -> Rows:
        known, names = Rows(), self._names()
        for path in indices_in(self._path):
            listing = read_index(path, store=self._store)
            if listing is not None:
                known.admit(listing.only(names - known.parts.keys()))
        self._indexed = set(known.parts)
        self._admit_new(known, looked_at=set(known.parts))
        return known

    def _admit_new(self, known: Rows, *, looked_at: set[str]) -> int:
        """Read the tables of parts until none is new; return how many there were."""
        count = 0
        while new := self._names() - looked_at:
            count += self._admit(sorted(new), known)
            looked_at |= new
        return count

    def _admit(self, names: Iterable[str], known: Rows) -> int:
        """Read the tables of these parts; return how many there were."""
        count = 0
        for name in names:
            path = self._path / "parts" / name
            try:
                found = read_part(path, self._layout, store=self._store)
            except Broken as error:
                if not path.exists():
                    continue  # removed while it was read
                raise damaged(path, "A part of the store", error) from error
            if found is not None:
                known.admit(found)
                count += 1
        return count


def damaged(part: Path, subject: str, error: Broken) -> Damaged:
    """Return the Damaged error for `subject`, which lies in `part`."""
    return Damaged(
        f"{subject} is damaged: {error}; it lies in {part}.",
        "Delete that folder, or type `qedit verify --drop`; then `qedit run` makes them anew.",
    )
