"""Sets of stores: stores of one recipe, in the folders of several datasets, read as one.

What two datasets share is so encoded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import NotComplete
from ..format.part import Layout
from .rejected_rows import RejectedRows
from .store import Store


class StoreSet:
    """Stores of one recipe, each in the folder of a dataset, read as one.

    Args:
        folders: dataset id -> the folder its stores lie in; two ids may name one folder.
    """

    def __init__(
        self, folders: Mapping[str, Path], recipe: Mapping[str, Any], layout: Layout
    ) -> None:
        self._folders, self._recipe, self._layout = dict(folders), recipe, layout
        by_folder: dict[Path, Store] = {}
        for folder in folders.values():
            place = folder.resolve()
            if place not in by_folder:
                by_folder[place] = Store(folder, recipe, layout)
        self._stores = {name: by_folder[folder.resolve()] for name, folder in folders.items()}
        self._distinct = tuple(by_folder.values())

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe of all of its stores."""
        return self._recipe

    def __contains__(self, key: str) -> bool:
        return any(key in store for store in self._distinct)

    def contains_many(self, keys: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Return a mask, one bool for each key: whether any store has it. For millions of keys."""
        held = np.zeros(len(keys), bool)
        for store in self._distinct:
            held |= store.contains_many(keys)
        return held

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of `keys` that no store has now."""
        left = list(keys)
        for store in self._distinct:
            store.refresh()
            left = store.missing(left)
        return left

    def of(self, dataset: str) -> Store:
        """Return the store that new rows of `dataset` are added to."""
        return self._stores[dataset]

    def stores_of(self, datasets: Iterable[str]) -> list[Store]:
        """Return the distinct stores of those of `datasets` that have one here."""
        return list(dict.fromkeys(self._stores[name] for name in datasets if name in self._stores))

    def stores(self) -> tuple[Store, ...]:
        """Return every distinct store."""
        return self._distinct

    def reopened(self) -> StoreSet:
        """Return a new set of the same stores, for another thread."""
        return StoreSet(self._folders, self._recipe, self._layout)

    def rejected(self) -> dict[str, RejectedRows]:
        """Return the keys that were rejected and still have no row, with their rejections."""
        places = (RejectedRows(store.path) for store in self._distinct)
        return {key: place for place in places for key in place.all_keys() if key not in self}

    def where(self) -> str:
        """Return the folders of the stores, for messages."""
        return ", ".join(str(store.path) for store in self._distinct)

    def read(self, key: str, *, dataset: str, into: np.ndarray | None = None) -> np.ndarray:
        """Return the row's bits (uint16), checksum verified; look in `dataset`'s store first.

        Args:
            into: where to put them, a contiguous array of the row's shape.

        Raises:
            NotComplete: no store has it.
            Damaged: its bytes are not those that were written.
        """
        first = self._stores.get(dataset, self._distinct[0])
        if len(self._distinct) == 1 or key in first:
            return first.read(key, into=into)
        store = next((store for store in self._distinct if key in store), first)
        return store.read(key, into=into)

    def shape(self, key: str, *, dataset: str) -> tuple[int, ...]:
        """Return the row's shape without reading it."""
        for store in (self._stores.get(dataset, self._distinct[0]), *self._distinct):
            if key in store:
                return store.shape(key)
        raise NotComplete(f"There is no row {key} for dataset '{dataset}'.")
