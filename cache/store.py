"""Stores: what has been computed, found again by what it was computed from.

A store is a folder of parts made by one recipe. What a stage still has to do is
`store.missing(wanted)`; that one line resumes, grows and repairs.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Bits, Broken
from .atomic import LEFTOVER, make_folder, owner_of, remove, sweep, unique_name, write_json
from .errors import AnotherRecipe, Damaged, NotComplete, QeditError
from .fingerprint import fingerprint
from .lock import writer_lock
from .manifest import MANIFEST_FILE
from .owner import is_dead
from .part import Damage, Layout, Part, read_part, verify_part, write_part

LATENTS = Layout("latents", ("sample", "channel", "height", "width"), ragged=False)
EMBEDS = Layout("embeds", ("token", "channel"), ragged=True)

RECIPE_FILE = "recipe.json"


class Store:
    """The rows that one recipe makes, at `folder`/<fingerprint of the recipe>.

    To construct one touches nothing. The parts are looked up at first use; what another
    process adds later is seen by a new Store, or inside `writing()`.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], layout: Layout) -> None:
        self.recipe, self.layout = dict(recipe), layout
        self.fingerprint = fingerprint(recipe)
        self.path = folder / self.fingerprint
        self._known: _Rows | None = None
        self._is_writing = False

    @property
    def parts_folder(self) -> Path:
        return self.path / "parts"

    def keys(self) -> Set[str]:
        """The keys of all rows there are.

        Raises (as everything that looks rows up):
            Damaged: the table of a part is not the one that was written.
        """
        return self._rows().number.keys()

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Those of `wanted` that are not there, in their order, each once."""
        there = self.keys()
        return [key for key in dict.fromkeys(wanted) if key not in there]

    def read(self, key: str) -> Bits:
        """The row of `key`: bits of bfloat16, in the shape they were added in.

        Raises:
            NotComplete: there is no such row.
            Damaged: its bytes are not the ones that were written.
        """
        part, row = self._find(key)
        try:
            return part.read(row)
        except Broken as error:
            raise _damaged(part.path, f"Row {key}", error) from error

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of the row of `key`; its bytes are not read."""
        part, row = self._find(key)
        return part.shape(row)

    def nbytes(self) -> int:
        """How many bytes the store takes on the disk, all its files together."""
        files = (Path(where, name) for where, _, names in os.walk(self.path) for name in names)
        return sum(file.stat().st_size for file in files)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be this store's only writer while the block runs: `add` works in it alone.

        Removes what dead writers left, and looks up what others have added meanwhile.

        Raises:
            Locked: another process is writing.
            AnotherRecipe: the folder of this name was made by another recipe.
        """
        with writer_lock(self.path, doing=f"adding {self.layout.array}"):
            self._keep_recipe()
            self._sweep()
            self._known = None
            self._is_writing = True
            try:
                yield
            finally:
                self._is_writing = False

    def add(self, keys: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        """Store these rows as one part: all of them or, whatever happens, none.

        Args:
            keys: one for each row, all different.
            rows: bits of bfloat16 (uint16), of one shape without the first dimension of the
                layout; if that is ragged, each `[length, ...]` of its own length.
        """
        if not self._is_writing:
            raise RuntimeError("Store.add is called inside `with store.writing():` only")
        if not keys and not rows:
            return
        _check(keys, rows, self.layout)
        path = self.parts_folder / unique_name()
        try:
            write_part(path, self.layout, store=self.fingerprint, keys=keys, rows=rows)
            added = read_part(path, self.layout, store=self.fingerprint)
        except BaseException:
            with contextlib.suppress(QeditError, OSError):  # the first error is the one to tell
                remove(path)
            raise
        assert added is not None
        self._rows().admit(*added)

    def verify(self, keys: Iterable[str] | None = None) -> list[Damage]:
        """Read everything (or the rows of `keys`) again; what is not as it was written."""
        wanted = None if keys is None else set(keys)
        return [
            damage
            for path in self._part_paths()
            for damage in verify_part(path, self.layout, store=self.fingerprint, wanted=wanted)
        ]

    def _find(self, key: str) -> tuple[Part, int]:
        rows = self._rows()
        if key not in rows.number:
            raise NotComplete(
                f"The store {self.path} has no row {key}.",
                "Run `qedit run`: it makes what is missing.",
            )
        return rows.find(key)

    def _rows(self) -> _Rows:
        """What is there, looked up once."""
        if self._known is None:
            known = _Rows()
            for path in self._part_paths():
                try:
                    found = read_part(path, self.layout, store=self.fingerprint)
                except Broken as error:
                    raise _damaged(path, "A part of the store", error) from error
                if found is not None:
                    known.admit(*found)
            self._known = known
        return self._known

    def _part_paths(self) -> list[Path]:
        folder = self.parts_folder
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in there if not path.name.endswith(LEFTOVER)]

    def _keep_recipe(self) -> None:
        """Write recipe.json, for people, or make sure that it says the same."""
        path = self.path / RECIPE_FILE
        if not path.exists():
            write_json(path, self.recipe)
            return
        try:
            said = fingerprint(json.loads(path.read_bytes()))
        except ValueError:
            said = "nothing readable"
        if said != self.fingerprint:
            raise AnotherRecipe(
                f"{path} is not the recipe that the folder is named after, {self.fingerprint}.",
                f"Put it back, or delete the folder {self.path} to make its rows anew.",
            )

    def _sweep(self) -> None:
        """Remove what processes that have died since left here, unfinished parts included."""
        make_folder(self.parts_folder)
        sweep(self.path)
        sweep(self.parts_folder)
        for path in self._part_paths():
            owner = owner_of(path.name)
            if owner and is_dead(owner) and not (path / MANIFEST_FILE).exists():
                remove(path)


class _Rows:
    """Which rows there are and where: a number for every key, counted through the parts."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self._parts: list[Part] = []
        self._first: list[int] = []
        self._count = 0

    def admit(self, part: Part, keys: list[str]) -> None:
        """Add the rows of `part`; of a key that is there already, the new row counts."""
        self._parts.append(part)
        self._first.append(self._count)
        self.number.update(zip(keys, range(self._count, self._count + len(keys)), strict=True))
        self._count += len(keys)

    def find(self, key: str) -> tuple[Part, int]:
        """The part in which the row of `key` lies, and which of its rows it is."""
        number = self.number[key]
        place = bisect.bisect_right(self._first, number) - 1
        return self._parts[place], number - self._first[place]


def _damaged(part: Path, subject: str, error: Broken) -> Damaged:
    return Damaged(
        f"{subject} is damaged: {error}; it lies in {part}.",
        "Delete that folder and run `qedit run`: it makes just those rows anew.",
    )


def _check(keys: Sequence[str], rows: Sequence[np.ndarray], layout: Layout) -> None:
    """Refuse what is not rows of `layout`: a mistake of the program, never of its user."""
    if len(keys) != len(rows) or len(set(keys)) != len(keys):
        raise ValueError(f"{len(rows)} rows need as many different keys, not {len(keys)}")
    dimensions = len(layout.dimension_names) - (0 if layout.ragged else 1)
    if any(row.dtype != np.uint16 or row.ndim != dimensions or row.size == 0 for row in rows):
        raise ValueError(f"rows of {layout.array} are uint16 and have {dimensions} dimensions")
    same = slice(1 if layout.ragged else 0, None)
    if len({row.shape[same] for row in rows}) > 1:
        raise ValueError(f"the rows of a part of {layout.array} must have one shape")
