"""Who uses a store: notes in it that name the pairs tables whose rows it holds.

Several runs may share a cache folder. Each leaves a note, so that what one of them no longer
wants is kept as long as another one's tables name it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..cache.atomic import write_json
from ..cache.fingerprint import key_of
from ..cache.store import Store
from ..config.configuration import Configuration
from .stores import captions_beside, used_main_datasets

USES = "uses"


@dataclass(frozen=True)
class Use:
    """A run's claim to rows: folders of pairs tables, and captions that go with every pair."""

    pairs: tuple[str, ...]
    output_dir: str
    captions_beside: tuple[str, ...]

    @property
    def name(self) -> str:
        """One note for each run; its captions are those it used last."""
        return key_of([*self.pairs, self.output_dir])[:16]


def use_of(configuration: Configuration) -> Use:
    """What a run with this configuration says of itself."""
    mains = used_main_datasets(configuration)
    folders = sorted({str(configuration.pairs_folder(main).resolve()) for main in mains})
    output_dir = str(Path(configuration.settings.output_dir).resolve())
    return Use(tuple(folders), output_dir, captions_beside(configuration.settings))


def note_use(stores: Sequence[Store], configuration: Configuration) -> None:
    """Leave the run's note in each of these stores, if it is not there already."""
    use = use_of(configuration)
    for store in stores:
        if store.path.is_dir() and use not in uses_of(store):
            write_json(store.path / USES / f"{use.name}.json", asdict(use))


def uses_of(store: Store) -> list[Use]:
    """The notes in a store; one that cannot be read names nothing."""
    folder = store.path / USES
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            said = json.loads(path.read_bytes())
            found.append(
                Use(tuple(said["pairs"]), said["output_dir"], tuple(said["captions_beside"]))
            )
        except (ValueError, KeyError, TypeError):
            continue
    return found
