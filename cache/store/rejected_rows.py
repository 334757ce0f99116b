"""Rows that could not be made, remembered beside the store that they would lie in.

    <store>/rejected/<key>.json   why there is no such row, and whether that is accepted

A rejection is a result: it is not tried again until it is forgotten. A file for each, named
by its key and written whole, so writers need no coordination; a row that is there after all
counts more than its rejection. No picture library and no torch in here: `train` reads it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import Broken, Damaged
from ..files.atomic import LEFTOVER, remove, sweep, write_json
from ..files.json_file import read_object

FOLDER = "rejected"
SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """The reason why there is no row of this key.

    Attributes:
        stage: the command that could not make it.
        dataset, path: the picture or the sample it was to be made of.
        reason: a short code; `detail` says it in words.
        accepted: whether later stages go on without it.
    """

    key: str
    stage: str
    dataset: str
    path: str
    reason: str
    detail: str
    accepted: bool = False

    def __str__(self) -> str:
        return f"{self.dataset}: {self.path}: {self.reason}: {self.detail}"


class RejectedRows:
    """The rejections of one store, read from disk at every call."""

    def __init__(self, store: Path) -> None:
        self._folder = store / FOLDER
        self._swept = False

    def all_keys(self) -> set[str]:
        """Return the keys of all rejections, from the file names alone."""
        if not self._folder.is_dir():
            return set()
        names = (path.name for path in self._folder.iterdir())
        return {name.removesuffix(SUFFIX) for name in names if not name.endswith(LEFTOVER)}

    def read(self, key: str) -> RejectedRow | None:
        """Return the rejection of `key`; None if it has been forgotten meanwhile.

        Raises:
            Damaged: its file is not one of ours.
        """
        path = self._path(key)
        try:
            return RejectedRow(**read_object(path))
        except FileNotFoundError:
            return None
        except (Broken, TypeError) as error:
            raise Damaged(
                f"{path} does not say why a row was rejected: {error}.",
                "Delete that file: its row is then tried again.",
            ) from error

    def add(self, row: RejectedRow) -> None:
        """Record a rejection."""
        if not self._swept:  # once: to look through thousands of files for each is slow
            sweep(self._folder)
            self._swept = True
        write_json(self._path(row.key), asdict(row))

    def accept(self, keys: Iterable[str]) -> None:
        """Let later stages go on without the rows of `keys`."""
        for key in keys:
            row = self.read(key)
            if row is not None and not row.accepted:
                self.add(replace(row, accepted=True))

    def forget(self, keys: Iterable[str]) -> None:
        """Remove the rejections of `keys`, so that their rows are tried again."""
        for key in self.all_keys().intersection(keys):
            remove(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"
