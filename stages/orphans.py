"""What lies in the caches and no pairs table names any more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..cache.errors import NotComplete
from ..cache.recipe_file import RECIPE_FILE
from ..cache.repacking import Repacking, plan_repacking
from ..cache.store import EMBEDS, LATENTS, Store
from ..config.configuration import Configuration
from .frozen_base import MODULATION
from .models.checkpoint import Checkpoint
from .pairs_table import MANIFEST, is_whole, manifest_in
from .preview_samples import keys_only_previewed
from .stores import WEIGHTS, RunStores, open_stores, used_main_datasets
from .tail_keys import belongs_to
from .uses import Use, use_of, uses_of
from .wanted import PairsKeys

RUN_FILE = "run.json"
LAYOUTS = {"latents": LATENTS, "weights": WEIGHTS, "modulation": MODULATION}  # others: embeds


@dataclass(frozen=True)
class Orphans:
    """What may go of one store. `all_of_it`: no table and no run asks for its recipe."""

    store: Store
    all_of_it: bool
    plan: Repacking

    @property
    def rows(self) -> int:
        return len(self.store) if self.all_of_it else self.plan.rows

    @property
    def count_bytes(self) -> int:
        return self.store.nbytes() if self.all_of_it else self.plan.count_bytes

    def __bool__(self) -> bool:
        return self.all_of_it or bool(self.plan)


def find_orphans(
    configuration: Configuration, checkpoint: Checkpoint, *, compact: bool = False
) -> list[Orphans]:
    """Look at every store in the cache folders of this configuration; nothing is changed."""
    stores = open_stores(configuration, checkpoint)
    needed = needed_fingerprints(configuration, stores)
    own = use_of(configuration, also=_previewed(configuration, checkpoint, stores))
    found = []
    for store in stores_beside(stores):
        uses = [use for use in uses_of(store) if use.name != own.name and is_there(use)]
        if store.fingerprint in needed:
            uses.append(own)
        if not uses:
            found.append(Orphans(store, True, Repacking()))
            continue
        wanted = wanted_keys(store, uses)
        found.append(Orphans(store, False, plan_repacking(store, wanted, compact=compact)))
    return [one for one in found if one]


def _previewed(
    configuration: Configuration, checkpoint: Checkpoint, stores: RunStores
) -> tuple[str, ...]:
    try:
        return keys_only_previewed(configuration, checkpoint.flavour, stores)
    except NotComplete:
        return ()  # where there are no pairs, nothing is previewed


def other_uses(configuration: Configuration, stores: RunStores) -> list[Use]:
    """What other runs want of the stores in the folders of this one, each use once."""
    own = use_of(configuration)
    found = [use for store in stores_beside(stores) for use in uses_of(store)]
    return [use for use in dict.fromkeys(found) if use.name != own.name and is_there(use)]


def needed_fingerprints(configuration: Configuration, stores: RunStores) -> set[str]:
    """Of the recipes of these settings, and of those that the run in output_dir was made with."""
    needed = {store.fingerprint for shelf in stores.shelves() for store in shelf.stores()}
    run = Path(configuration.settings.output_dir) / RUN_FILE
    if run.is_file():
        needed |= set(json.loads(run.read_text(encoding="utf-8")).get("recipes", {}).values())
    return needed


def stores_beside(stores: RunStores) -> list[Store]:
    """Every store in the folders of these, of whatever recipe."""
    folders = {
        store.path.parent.resolve(): store.path.parent
        for shelf in stores.shelves()
        for store in shelf.stores()
    }
    return [store for folder in folders.values() for store in stores_in(folder)]


def stores_in(folder: Path) -> Iterator[Store]:
    """Every store in `folder` whose recipe is the one that it is named after."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            recipe = json.loads((path / RECIPE_FILE).read_bytes())
        except (OSError, ValueError):
            continue
        layout = LAYOUTS.get(recipe.get("rows"), EMBEDS)
        store = Store(folder, recipe, layout)
        if store.path.name == path.name:
            yield store


def wanted_keys(store: Store, uses: Iterable[Use]) -> pa.ChunkedArray:
    """The keys of the kind of rows that `store` holds, in all tables of these uses."""
    chunks = [
        _keys_of(store, table, use.captions_beside) for use in uses for table in tables_of(use)
    ]
    chunks += [pa.array(use.also, pa.string()) for use in uses]
    return pa.chunked_array(chunks, pa.string())


def tables_of(use: Use) -> Iterator[PairsKeys]:
    """Every complete pairs table of a use; of one that names none, every table in its folders."""
    for folder in use.pairs:
        for manifest_file in sorted(Path(folder).glob(f"*/{MANIFEST}")):
            if use.tables and manifest_file.parent.name not in use.tables:
                continue
            manifest = manifest_in(manifest_file.parent)
            if manifest is not None and is_whole(manifest_file.parent, manifest):
                yield PairsKeys(manifest_file.parent / manifest["pairs"])


def left_by_pair(configuration: Configuration, uses: Sequence[Use]) -> list[Path]:
    """Folders of pairs tables that no use names, and files that others have replaced.

    Args:
        uses: those of other runs that are known.
    """
    left: list[Path] = []
    every = [*uses, use_of(configuration)]
    for main in used_main_datasets(configuration):
        folder = configuration.pairs_folder(main)
        here = [use for use in every if str(folder.resolve()) in use.pairs]
        if all(use.tables for use in here):
            named = {name for use in here for name in use.tables}
            tables = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
            left += [table for table in tables if table.name not in named]
    return left + [
        path for path in _replaced(configuration) if not any(one in path.parents for one in left)
    ]


def _replaced(configuration: Configuration) -> list[Path]:
    """Files beside a pairs table whose place another one has taken."""
    left: list[Path] = []
    for main in used_main_datasets(configuration):
        for manifest_file in sorted(configuration.pairs_folder(main).glob(f"*/{MANIFEST}")):
            folder = manifest_file.parent
            manifest = manifest_in(folder) or {}
            named = {manifest.get("pairs"), manifest.get("rejected_table")}
            left += [
                path
                for pattern in ("pairs-*.parquet", "rejected-*.parquet")
                for path in sorted(folder.glob(pattern))
                if path.name not in named
            ]
            left += [
                path
                for path in sorted(folder.glob("tails-*.parquet"))
                if not belongs_to(path.name, str(manifest.get("pairs")))
            ]
    return left


def _keys_of(store: Store, table: PairsKeys, beside: Sequence[str]) -> pa.Array:
    kind = store.recipe["rows"]
    if kind == "weights":
        return table.weights().keys
    if kind == "latents":
        return table.latents().keys
    return table.prefixes.keys if kind == "image prefix" else table.tails(beside).keys


def is_there(use: Use) -> bool:
    """Whether the tables that a use names may still be there."""
    return any(Path(folder).is_dir() for folder in use.pairs)
