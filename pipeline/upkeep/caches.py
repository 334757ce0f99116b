"""The contents of a run's caches, and the records there that keep them: both read once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from ...cache.errors import Damaged, NotComplete
from ...cache.files.fingerprint import fingerprint
from ...cache.store.recipe_file import read_recipe
from ...cache.store.store import Store
from ...config.settings import Settings
from ...stages.frozen_base.modulation_table import base_folder
from ...stages.frozen_base.quantized import base_names, bases_in
from ...stages.run_output.data_history import needed_tables
from ...stages.run_output.run_file import read_run
from ...stages.samples.store_keys import PairsKeys
from ...stages.samples.table import MANIFEST, manifest_in
from ...stages.stores.moves import Move, known_id, written_id
from ...stages.stores.pins import RUNS, Pin, Record, is_foreign, pairs_pin, pin_of, read_records
from ...stages.stores.row_kinds import RowKind, layout_of
from ...stages.stores.run import Run

PARTS = "parts"
FINGERPRINT = r"[0-9a-f]{16}"


def folders_of(run: Run) -> list[Path]:
    """Return every folder there is that may hold a store, a base or pairs tables of the run."""
    rows = [store.path.parent for store in run.stores.all_stores()]
    every = (*rows, base_folder(run.settings), run.pairs_root)
    return list({folder.resolve(): folder for folder in every if folder.is_dir()}.values())


class Caches:
    """The folders that hold anything of a run, as they were when this was made.

    Args:
        locked: `folders_of` the run, in which nobody else can write; None: nothing is locked.

    Attributes:
        folders: those that are looked at.
        stores: every store and every modulation table in them, of whatever recipe.
        bases: every quantised base.
        unnamed: folders that look like stores, but are not named after their recipe.json.
    """

    def __init__(self, run: Run, *, locked: Sequence[Path] | None = None) -> None:
        self.run, self.is_locked = run, locked is not None
        self.folders = folders_of(run) if locked is None else list(locked)
        opened = {store.path.resolve(): store for store in run.stores.all_stores()}
        found = [store for folder in self.folders for store in stores_in(folder)]
        self.stores = [opened.get(store.path.resolve(), store) for store in found]
        self.bases = [base for folder in self.folders for base in bases_in(folder)]
        named = {store.path for store in self.stores}
        like_stores = [path.parent for folder in self.folders for path in folder.glob(f"*/{PARTS}")]
        self.unnamed = [
            path
            for path in sorted(like_stores)
            if path not in named and re.fullmatch(FINGERPRINT, path.name)
        ]
        self._keys: dict[tuple[object, ...], list[pa.Array]] = {}

    def every_store(self) -> list[Path]:
        """Return the folders that may hold claims: stores, tables, and what looks like stores."""
        return [*(store.path for store in self.stores), *self.unnamed]

    @cached_property
    def found_records(self) -> dict[Path, list[Record | Damaged]]:
        """The records in each folder, or what is wrong with one."""
        return {folder: list(read_records(folder)) for folder in self.folders}

    @cached_property
    def moves(self) -> list[str]:
        """The folders that lay elsewhere when their records were written, in sentences."""
        found = [record for records in self.found_records.values() for record in records]
        records = [record for record in found if isinstance(record, Record) and record.is_moved]
        lines = [record.move.in_words(is_copy=record.is_copy) for record in records]
        here = self.run.output_dir
        place = written_id(here)[1]
        if here not in (place, *(Path(record.move.path(str(place))) for record in records)):
            lines.append(Move(place, here).in_words(is_copy=not known_id(here)))
        return list(dict.fromkeys(lines))

    @property
    def foreign(self) -> list[Path]:
        """Everything among the records that is none."""
        there = [path for folder in self.folders for path in sorted(folder.glob(f"{RUNS}/[!.]*"))]
        return [path for path in there if is_foreign(path)]

    def records(self, *, own: bool) -> Iterator[tuple[Path, Record]]:
        """Yield the records of this run, or of all others, with the folders they lie in.

        Raises:
            Damaged: one cannot be read, so that what its run needs is unknown.
        """
        for folder, found in self.found_records.items():
            for record in found:
                if isinstance(record, Damaged):
                    raise record
                if record.is_of(self.run) is own:
                    yield folder, record

    @cached_property
    def others(self) -> list[str]:
        """The `output_dir` of every other run that has a record here."""
        return sorted(
            {
                record.output_dir
                for folder, record in self.records(own=False)
                if any((folder / name).is_dir() for name in record.pins)
            }
        )

    @cached_property
    def _others_pins(self) -> dict[Path, list[Pin]]:
        """The needs of other runs: of each store, base and folder of pairs tables, by its path.

        Raises:
            Damaged, NotComplete: what one of them needs is unknown.
        """
        pins: dict[Path, list[Pin]] = {}
        unknown: list[tuple[Record, list[str]]] = []
        for folder, record in self.records(own=False):
            for name, pin in record.pins.items():
                # what has only been paired is in nobody's way once its tables have gone
                gone = pin.tables_gone() if folder != self.run.pairs_root else []
                if gone and (folder / name).is_dir():
                    unknown.append((record, gone))
                pins.setdefault(folder / name, []).append(pin)
        if unknown:
            _refuse_without_tables(unknown)
        return pins

    @cached_property
    def own_pin(self) -> Pin:
        """The need of this run of its stores of rows."""
        try:
            return pin_of(self.run)
        except NotComplete:
            return pairs_pin(self.run)  # where there are no pairs, nothing is previewed

    @cached_property
    def needed(self) -> set[str]:
        """The names of what these settings need, and of what runs in output_dirs were made with.

        Raises:
            Damaged: a run.json cannot be read.
        """
        own = (*self.run.stores.all_stores(), self.run.modulation_table, self.run.quantized_base)
        needed = {one.path.name for one in own if one is not None}
        needed |= set((read_run(self.run.output_dir) or {}).get("recipes", {}).values())
        for output_dir in (self.run.output_dir, *map(Path, self.others)):
            run = read_run(output_dir) or {}
            if "settings" in run and "transformer" in run.get("model", {}):
                settings = Settings.model_construct(**run["settings"])
                needed |= base_names(settings, run["model"]["transformer"])
        return needed

    @cached_property
    def former_tables(self) -> set[str]:
        """The former pairs tables that a checkpoint of a run here needs to be resumed from."""
        continues = self.run.settings.on_changed_data == "continue"
        tables = needed_tables(self.run.output_dir, continues=continues)
        return tables.union(*(needed_tables(Path(other), continues=False) for other in self.others))

    def pins_of(self, path: Path) -> list[Pin]:
        """Return every need of the store or base at `path`: what none of them names may go.

        Raises:
            Damaged: a record cannot be read.
            NotComplete: the tables that another run's record names are gone.
        """
        pins = list(dict.fromkeys(self._others_pins.get(path, ())))
        pins += [self.own_pin] if path.name in self.needed else []
        # who has only paired names rows, but no recipe: they stay where anybody uses the store
        places = [self.run.configuration.pairs_folder(main) for main in self.run.main_datasets]
        paired = [pin for place in places for pin in self._others_pins.get(place, ())]
        return pins + paired if pins else []

    def wanted_keys(self, store: Store, pins: Iterable[Pin]) -> pa.ChunkedArray:
        """Return the keys of the kind of rows that `store` holds, in all tables of these pins."""
        chunks, kind = [], RowKind.of(store.recipe)
        for pin in pins:
            asked = (kind, pin.pairs, pin.tables, pin.captions_beside)
            if asked not in self._keys:
                former = (Path(place, name) for place in pin.pairs for name in self.former_tables)
                paths = (*_tables_of(pin), *filter(Path.is_file, former))
                tables = map(PairsKeys, paths)
                found = [kind.keys_in(table, pin.captions_beside).keys for table in tables]
                self._keys[asked] = found
            chunks += [pa.array(pin.extra_keys, pa.string()), *self._keys[asked]]
        return pa.chunked_array(chunks, pa.string())


def _tables_of(pin: Pin) -> Iterator[Path]:
    """Yield every complete pairs table of a pin; of one that names none, all in its folders.

    Raises:
        Damaged: one is not there that its manifest names, or cannot be read.
    """
    for folder in pin.pairs:
        for manifest_file in sorted(Path(folder).glob(f"*/{MANIFEST}")):
            place = manifest_file.parent
            if pin.tables and place.name not in pin.tables:
                continue
            manifest = manifest_in(place)
            if manifest is None:
                continue
            # the table of what was rejected names no row
            if not (place / manifest["pairs"]).is_file():
                raise Damaged(
                    f"The pairs table {place / manifest['pairs']} is gone, and {manifest_file} "
                    "names it. The rows that its run needs are unknown, so nothing is deleted.",
                    "Run the stage pair of that run again or, if there is no such run any more, "
                    f"delete {place}.",
                )
            yield place / manifest["pairs"]


def stores_in(folder: Path) -> Iterator[Store]:
    """Yield every store in `folder` whose recipe is the one that it is named after."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        recipe = read_recipe(path)
        if recipe is None or fingerprint(recipe) != path.name:
            continue
        yield Store(folder, recipe, layout_of(recipe))


def _refuse_without_tables(unknown: Sequence[tuple[Record, list[str]]]) -> NoReturn:
    """Raise because pairs tables that a record names cannot be asked which rows it needs."""
    first, gone = unknown[0]
    same = {record.path for record, _ in unknown if record.output_dir == first.output_dir}
    where = ", ".join(map(str, sorted(same)))
    raise NotComplete(
        f"The run in {first.output_dir} uses these caches, as {where} says, but its pairs tables "
        f"are gone: {', '.join(gone)}. The rows that it needs are unknown, so nothing is deleted.",
        "If they lie on a disk that is not mounted, mount it. Else run the stages of that run "
        f"again or, if it needs these caches no more, delete {where}.",
    )
