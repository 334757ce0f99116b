"""Stores: computed rows, found again by a digest of what they were computed from.

A store is a folder of parts made by one recipe. What a stage still has to do is
`store.missing(wanted)`; that one line resumes, grows and repairs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import Broken, NotComplete, QeditError
from ..files.atomic import make_folder, owner_of, remove, sweep, unique_name
from ..files.claims import refuse_claims
from ..files.fingerprint import fingerprint
from ..files.free_space import tree_bytes
from ..files.lock import writer_lock
from ..files.owner import is_dead
from ..format.arrays import Bits
from ..format.finding import count_different
from ..format.listing import Listing, Row, Rows
from ..format.manifest import MANIFEST_FILE
from ..format.part import Layout, Part, refuse_misfits, write_part
from .contents import Contents, damaged
from .recipe_file import keep_recipe, wrong_recipe
from .torn import torn_parts
from .verifying import Damage, verify_part

LATENTS = Layout("latents", ("sample", "channel", "height", "width"), ragged=False)
EMBEDS = Layout("embeds", ("token", "channel"), ragged=True)

# a recipe that says so makes a store whose chunks are packed; one that says nothing does not
COMPRESSION, ZSTD = "compression", "zstd"
FEW_PARTS = 32  # to read the tables of so many takes a few hundredths of a second
MANY_PARTS = 256
MANY_ROWS = 1 << 14  # to keep in mind where so many lie takes 4 MB


class Store:
    """The rows that one recipe makes, at `folder`/<fingerprint of the recipe>.

    Constructing it reads nothing. The parts are looked up at first use; what another
    process adds later is seen by a new Store, after `refresh()`, and inside `adding()`.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], layout: Layout) -> None:
        self.recipe, self.layout = dict(recipe), layout
        self.fingerprint = fingerprint(recipe)
        self.path = folder / self.fingerprint
        self._contents = Contents(self.path, layout, store=self.fingerprint)
        self._parts: dict[str, Part] = {}
        # where the rows lie that have been read, of what was known then
        self._found: tuple[Rows | None, dict[str, tuple[Part, Row]]] = None, {}
        self._adders = 0

    @property
    def parts_folder(self) -> Path:
        return self.path / "parts"

    def keys(self) -> Set[str]:
        """Return the keys of all rows, as a set of Python objects.

        Raises (as everything that looks rows up):
            Damaged: the table of a part is not the one that was written.
        """
        return set(self._contents.rows().keys().to_pylist())

    def __contains__(self, key: str) -> bool:
        return key in self._contents.rows()

    def __len__(self) -> int:
        return count_different(self._contents.rows().keys())

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Return the keys of `wanted` that have no row, in their order, each once."""
        there = self._contents.rows()
        return [key for key in dict.fromkeys(wanted) if key not in there]

    def contains_many(self, keys: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Return a mask, one bool for each key: whether it has a row. For millions of keys."""
        return self._contents.rows().contains_many(keys)

    def read(self, key: str, *, into: Bits | None = None) -> Bits:
        """Return the row of `key`: bits of bfloat16 (uint16), in the shape they were added in.

        Args:
            into: where to put them, a contiguous array of that shape: a place in a batch.

        Raises:
            NotComplete: there is no such row.
            Damaged: its bytes are not the ones that were written.
        """
        part, row = self._find(key)
        while True:
            try:
                return part.read(row, into=into)
            except Broken as error:
                gone = part
                if not gone.path.exists():
                    self.refresh()  # or another thread has: the row has moved to another part
                    part, row = self._find(key)
                if part is gone:
                    raise damaged(gone.path, f"Row {key}", error) from error

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of the row of `key` without reading its bytes."""
        part, row = self._find(key)
        return part.shape(row)

    def nbytes(self) -> int:
        """Return the bytes that all files of the store take on the disk."""
        return tree_bytes(self.path)

    def listing(self) -> Listing | None:
        """Return the rows of all parts as columns; None if there is no part."""
        return self._contents.rows().listing()

    def torn(self) -> set[str]:
        """Return the names of parts that have lost a file, judged by file lengths alone."""
        listing = self.listing()
        if listing is None:
            return set()
        return torn_parts(self.parts_folder, listing, array=self.layout.array)

    def leave_out_torn(self) -> int:
        """Treat the rows of parts that have lost a file as missing; return how many parts."""
        torn = self.torn()
        if torn:
            self._contents.leave_out(torn)
        return len(torn)

    def refresh(self) -> bool:
        """Look up what others have added or removed meanwhile; return whether they have."""
        return self._contents.refresh()

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        """Let `add` work while the block runs. Others may add at the same time.

        Removes what dead writers left, and looks up what others have added meanwhile.

        Raises:
            AnotherRecipe: the folder of this name was made by another recipe.
        """
        make_folder(self.parts_folder)
        keep_recipe(self.path, self.recipe)
        self.sweep()
        self._adders += 1
        try:
            yield
        finally:
            self._adders -= 1
        self._contents.keep_index(FEW_PARTS)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that adds or removes anything while the block runs.

        Raises:
            Locked: another process is writing.
            AnotherRecipe: the folder of this name was made by another recipe.
        """
        with writer_lock(self.path, doing=f"adding {self.layout.array}"):
            refuse_claims(self.path)
            with self.adding():
                yield

    def add(self, keys: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        """Store these rows as one part: all of them or, whatever happens, none.

        Args:
            keys: one for each row, all different.
            rows: bits of bfloat16 (uint16), of one shape without the first dimension of the
                layout; if that is ragged, each `[length, ...]` of its own length.
        """
        if not self._adders:
            raise RuntimeError("Store.add is called inside `adding()` or `writing()` only")
        if not keys and not rows:
            return
        refuse_misfits(keys, rows, self.layout)
        path = self.parts_folder / unique_name()
        try:
            write_part(
                path,
                self.layout,
                store=self.fingerprint,
                keys=keys,
                rows=rows,
                packs=self.recipe.get(COMPRESSION) == ZSTD,
            )
            self._contents.admit(path.name)
        except BaseException:
            with contextlib.suppress(QeditError, OSError):  # the first error is the one to tell
                remove(path)
            raise
        self._contents.keep_index(max(MANY_PARTS, len(self._contents.rows().parts) // 4))

    def verify(
        self,
        keys: Iterable[str] | None = None,
        *,
        share: float = 1.0,
        seen: Callable[[int], None] = lambda parts: None,
    ) -> list[Damage]:
        """Read all rows (or those of `keys`) again; return what is not as it was written.

        Args:
            share: of the rows, drawn anew every time; the tables are read in any case.
            seen: called with the number of parts read since its last call.
        """
        wanted = None if keys is None else set(keys)
        wrong = wrong_recipe(self.path, self.recipe, has_parts=bool(self._contents.part_names()))
        damages = [Damage(self.path, None, what) for what in wrong]
        indexed = self._contents.in_indices()
        for path in self.part_paths():
            damages += verify_part(
                path,
                self.layout,
                store=self.fingerprint,
                wanted=wanted,
                share=share,
                indexed=indexed,
            )
            seen(1)
        return damages

    def part_paths(self) -> list[Path]:
        """Return the folders of all parts, unfinished ones too."""
        return [self.parts_folder / name for name in sorted(self._contents.part_names())]

    def sweep(self) -> None:
        """Remove the leftovers of processes that have died, unfinished parts included.

        What others have added meanwhile is looked up before.
        """
        self.refresh()
        sweep(self.path)
        sweep(self.parts_folder)
        for name in self._contents.part_names() - self._contents.rows().parts.keys():
            owner = owner_of(name)
            path = self.parts_folder / name
            if owner and is_dead(owner) and not (path / MANIFEST_FILE).exists():
                with contextlib.suppress(FileNotFoundError):  # another sweeper was faster
                    remove(path)

    def _find(self, key: str) -> tuple[Part, Row]:
        rows = self._contents.rows()
        known, places = self._found
        if known is not rows:
            self._found = known, places = rows, {}
        place = places.get(key)
        if place is None:
            place = self._look_up(key, rows)
            if len(places) < MANY_ROWS:
                places[key] = place
        return place

    def _look_up(self, key: str, rows: Rows) -> tuple[Part, Row]:
        found = rows.find(key)
        if found is None:
            raise NotComplete(
                f"The store {self.path} has no row {key}.",
                "Run `qedit run`: it makes what is missing.",
            )
        name, row = found
        part = self._parts.get(name)
        if part is None:
            part = Part(self.parts_folder / name, self.layout, rows.parts[name])
            part = self._parts.setdefault(name, part)  # another thread may have been faster
        return part, row
