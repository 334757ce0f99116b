"""Who uses a store: notes in it that name the pairs tables whose rows it holds.

Several runs may share a cache folder. Each leaves a note, so that what one of them no longer
wants is kept as long as another one's tables name it. A note says which store it was left in: in
a copy of that store it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..cache.atomic import write_json
from ..cache.fingerprint import key_of
from ..config.configuration import Configuration
from .models.checkpoint import flavour_of
from .pairs_table import table_folder
from .stores import captions_beside, used_main_datasets

USES = "uses"


@runtime_checkable
class Kept(Protocol):
    """A store, or anything else that a folder in the caches holds."""

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class Use:
    """A run's claim to rows: pairs tables, and captions that go with every pair.

    Attributes:
        pairs: folders of pairs tables.
        tables: the names of its tables in them; none: of a note that tells of no names, so that
            every table there counts.
        also: keys that are in no table: of whole references, where training crops them and
            previews do not.
    """

    pairs: tuple[str, ...]
    output_dir: str
    captions_beside: tuple[str, ...]
    tables: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """One note for each run; its captions and tables are those it used last."""
        return key_of([*self.pairs, self.output_dir])[:16]


def use_of(configuration: Configuration, *, also: tuple[str, ...] = ()) -> Use:
    """What a run with this configuration says of itself."""
    mains = used_main_datasets(configuration)
    folders = sorted({str(configuration.pairs_folder(main).resolve()) for main in mains})
    flavour = flavour_of(configuration.settings)
    return Use(
        pairs=tuple(folders),
        output_dir=str(Path(configuration.settings.output_dir).resolve()),
        captions_beside=captions_beside(configuration.settings),
        tables=tuple(sorted({table_folder(configuration, main, flavour).name for main in mains})),
        also=also,
    )


def note_use(
    stores: Sequence[Kept], configuration: Configuration, *, also: tuple[str, ...] = ()
) -> None:
    """Leave the run's note in each of these stores, if it is not there already."""
    use = use_of(configuration, also=also)
    for store in stores:
        if store.path.is_dir() and use not in uses_of(store):
            write_json(store.path / USES / f"{use.name}.json", asdict(use) | _place(store))


def uses_of(store: Kept) -> list[Use]:
    """The notes that were left in this very store; one that cannot be read names nothing."""
    place = _place(store)
    folder = store.path / USES
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            said = json.loads(path.read_bytes())
            use = Use(
                tuple(said["pairs"]),
                said["output_dir"],
                tuple(said["captions_beside"]),
                tuple(said.get("tables", ())),
                tuple(said.get("also", ())),
            )
            # a moved store keeps its inode, another mount of it its path; a copy has neither
            if any(said.get(name, value) == value for name, value in place.items()):
                found.append(use)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _place(store: Kept) -> dict[str, str | int]:
    """Where a store lies, and what its file system calls it."""
    where = store.path.resolve()
    return {"store": str(where), "inode": where.stat().st_ino if where.is_dir() else 0}
