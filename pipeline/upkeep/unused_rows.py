"""What lies in the caches and no pairs table names any more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ...cache.errors import Broken, Damaged, NotComplete, QeditError
from ...cache.files.free_space import tree_bytes
from ...cache.format.part import read_part
from ...cache.store.recipe_file import read_recipe
from ...cache.store.repacking import Repacking, plan_repacking
from ...cache.store.store import Store
from ...config.configuration import Configuration
from ...stages.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ...stages.run_output.run_file import read_run
from ...stages.samples.recipe import refuse_others
from ...stages.samples.store_keys import PairsKeys
from ...stages.samples.table import MANIFEST, manifest_in, table_folder, used_main_datasets
from ...stages.stores.pins import Use, use_of
from ...stages.stores.previewed import keys_only_previewed
from ...stages.stores.row_kinds import RowKind, layout_of
from ...stages.stores.run import Run
from ...stages.stores.run_stores import RunStores, open_stores
from .other_runs import others_in, others_of, paired_by_others

PARTS = "parts"
FINGERPRINT = r"[0-9a-f]{16}"


@dataclass(frozen=True)
class Orphans:
    """What may go of one store.

    Attributes:
        all_of_it: no table and no run asks for its recipe.
        broken: parts whose tables cannot be read; what else may go is seen once they have gone.
    """

    store: Store
    all_of_it: bool
    plan: Repacking
    broken: tuple[Path, ...] = ()

    @property
    def rows(self) -> int:
        if self.broken:
            return 0  # nobody can tell
        return len(self.store) if self.all_of_it else self.plan.rows

    @property
    def count_bytes(self) -> int:
        if self.all_of_it:
            return self.store.nbytes()
        return self.plan.count_bytes + sum(tree_bytes(path) for path in self.broken)

    def __bool__(self) -> bool:
        return self.all_of_it or bool(self.plan or self.broken)


@dataclass(frozen=True)
class Unnamed:
    """A store whose recipe.json is not the one that the folder is named after, at `path`."""

    path: Path


def find_orphans(
    configuration: Configuration, checkpoint: Checkpoint, *, compact: bool = False
) -> list[Orphans]:
    """Look at every store in the cache folders of this configuration; nothing is changed.

    Raises:
        Damaged: a store of these settings, or what would tell what another run wants.
        NotComplete: the tables of another run are gone, so that nobody can tell what it wants.
    """
    stores = open_stores(configuration, checkpoint)
    needed = needed_fingerprints(configuration, stores)
    present = {store.fingerprint for store in stores.all_stores()}
    own = use_of(configuration, also=previewed_keys(configuration, checkpoint, stores))
    paired = paired_by_others(configuration)
    found = []
    for store in stores_beside(stores):
        uses = others_of(store, own) + ([own] if store.fingerprint in needed else [])
        # who has only paired names rows, but no recipe: it keeps them where anybody uses the store
        uses += paired if uses else []
        if store.fingerprint not in present and (broken := broken_parts(store)):
            found.append(Orphans(store, not uses, Repacking(), broken))
        elif not uses:
            found.append(all_of(store))
        else:
            plan = plan_repacking(store, wanted_keys(store, uses), compact=compact)
            found.append(Orphans(store, False, plan))
    return [one for one in found if one]


def all_of(store: Store) -> Orphans:
    """The whole store, which nobody asks for."""
    return Orphans(store, True, Repacking(), broken_parts(store))


def broken_parts(store: Store) -> tuple[Path, ...]:
    """The parts whose tables cannot be read: no row of them can."""
    try:
        store.listing()
    except Damaged:
        return tuple(path for path in store.part_paths() if _is_broken(store, path))
    return ()


def _is_broken(store: Store, path: Path) -> bool:
    try:
        read_part(path, store.layout, store=store.fingerprint)
    except Broken:
        return True
    return False


def count_orphans(
    configuration: Configuration, checkpoint: Checkpoint, wanted: Iterable[Store]
) -> int:
    """How many rows of these stores no table names; raises as `find_orphans` does.

    Those of other recipes, which lie beside, are not looked at.
    """
    stores = open_stores(configuration, checkpoint)
    own = use_of(configuration, also=previewed_keys(configuration, checkpoint, stores))
    paired = paired_by_others(configuration)
    return sum(
        plan_repacking(store, wanted_keys(store, [*others_of(store, own), *paired, own])).rows
        for store in wanted
    )


def count_orphans_of_stage(configuration: Configuration, stage: str) -> int | None:
    """Count the rows of this caching stage that no table names; None where nobody can tell."""
    try:
        checkpoint = open_checkpoint(configuration.settings)
        stores = open_stores(configuration, checkpoint)
        pictures = (stores.latents, stores.weights)
        store_sets = pictures if stage == "cache-vae" else (stores.prefixes, stores.tails)
        found = [store for store_set in store_sets for store in store_set.stores()]
        return count_orphans(configuration, checkpoint, found)
    except QeditError:
        return None  # what is to be done is known all the same; `gc` says what is wrong


def refuse_without_pairs(configuration: Configuration, checkpoint: Checkpoint) -> None:
    """Raise if a pairs table of these very settings is not there: its rows would seem unwanted.

    Raises:
        NotComplete: `pair` has not run since the settings changed, or has for others' pictures.
        Damaged: there is one, but its manifest cannot be read.
    """
    for main in used_main_datasets(configuration):
        manifest = manifest_in(table_folder(configuration, main, checkpoint.flavour))
        if manifest is None:
            raise NotComplete(
                f"There is no pairs table of dataset {main.id} with these settings yet: which rows "
                "they want, nobody can tell.",
                "Run `qedit pair` first, then `qedit gc` again.",
            )
        refuse_others(configuration, main, manifest.get("folders", {}))


def previewed_keys(
    configuration: Configuration, checkpoint: Checkpoint, stores: RunStores
) -> tuple[str, ...]:
    """The keys that no table of this run names, and that its previews show."""
    try:
        return keys_only_previewed(Run(configuration))
    except NotComplete:
        return ()  # where there are no pairs, nothing is previewed


def other_uses(configuration: Configuration, stores: RunStores) -> list[Use]:
    """What other runs want of the stores in the folders of this one, each use once.

    Raises:
        Damaged, NotComplete: as `find_orphans` does.
    """
    return others_in(stores_beside(stores), use_of(configuration))


def needed_fingerprints(configuration: Configuration, stores: RunStores) -> set[str]:
    """Of the recipes of these settings, and of those that the run in output_dir was made with."""
    needed = {store.fingerprint for store in stores.all_stores()}
    run = read_run(configuration.settings.output_dir) or {}
    return needed | set(run.get("recipes", {}).values())


def stores_beside(stores: RunStores) -> list[Store]:
    """Every store in the folders of these, of whatever recipe."""
    return [store for folder in folders_of(stores) for store in stores_in(folder)]


def stores_in(folder: Path) -> Iterator[Store]:
    """Every store in `folder` whose recipe is the one that it is named after."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        recipe = read_recipe(path)
        if recipe is None:
            continue
        store = Store(folder, recipe, layout_of(recipe))
        if store.path.name == path.name:
            yield store


def unnamed_in(stores: RunStores) -> list[Unnamed]:
    """What lies in the same folders and looks like a store, but is not named by its recipe."""
    found = []
    for folder in folders_of(stores):
        named = {store.path.name for store in stores_in(folder)}
        for path in sorted(folder.glob(f"*/{PARTS}")):
            if re.fullmatch(FINGERPRINT, path.parent.name) and path.parent.name not in named:
                found.append(Unnamed(path.parent))
    return found


def unnamed_orphans(configuration: Configuration, stores: RunStores) -> list[Unnamed]:
    """Those of them that no settings and no run ask for; raises as `find_orphans` does."""
    needed, own = needed_fingerprints(configuration, stores), use_of(configuration)
    return [
        one for one in unnamed_in(stores) if one.path.name not in needed and not others_of(one, own)
    ]


def folders_of(stores: RunStores) -> list[Path]:
    """Every folder that a store of the run may lie in."""
    folders = {store.path.parent.resolve(): store.path.parent for store in stores.all_stores()}
    return list(folders.values())


def wanted_keys(store: Store, uses: Iterable[Use]) -> pa.ChunkedArray:
    """The keys of the kind of rows that `store` holds, in all tables of these uses."""
    chunks = [
        RowKind.of(store.recipe).keys_in(table, use.captions_beside).keys
        for use in uses
        for table in tables_of(use)
    ]
    chunks += [pa.array(use.also, pa.string()) for use in uses]
    return pa.chunked_array(chunks, pa.string())


def tables_of(use: Use) -> Iterator[PairsKeys]:
    """Every complete pairs table of a use; of one that names none, every table in its folders.

    Raises:
        Damaged: one is not there that its manifest names, or cannot be read.
    """
    for folder in use.pairs:
        for manifest_file in sorted(Path(folder).glob(f"*/{MANIFEST}")):
            place = manifest_file.parent
            if use.tables and place.name not in use.tables:
                continue
            manifest = manifest_in(place)
            if manifest is None:
                continue
            # the table of what was rejected names no row
            if not (place / manifest["pairs"]).is_file():
                raise Damaged(
                    f"The pairs table {place / manifest['pairs']} is gone, and {manifest_file} "
                    f"names it. Which rows the run in {use.output_dir} wants, nobody can tell.",
                    "Run the stage pair of that run again or, if there is no such run any more, "
                    f"delete {place}.",
                )
            yield PairsKeys(place / manifest["pairs"])
