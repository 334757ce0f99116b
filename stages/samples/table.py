"""The pairs table on disk: what `pair` leaves for every later stage.

    <pairs folder of a main dataset>/<fingerprint of the recipe>/
        recipe.json             what decides the table, the files' content aside
        pairs-<digest>.parquet  one row a sample
        rejected-<digest>.parquet
        manifest.json           written last: counts, and which two files hold now

The two tables carry the digest of their content in their names and are never changed, so a
reader of an older manifest goes on reading what it began with.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...cache.errors import Broken, Damaged, NotComplete
from ...cache.files import atomic
from ...cache.files.fingerprint import fingerprint, has_digest
from ...cache.files.sealed import read_sealed, sealed
from ...cache.format.tables import table_blocks, table_in, write_blocks
from ...cache.store.recipe_file import RECIPE_FILE
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...config.settings import Settings
from ..models.flavours import Flavour
from .lazy_samples import SampleRows
from .other_flavours import made_for_others
from .recipe import pairs_recipe as pairs_recipe
from .recipe import refuse_others
from .sample import NULL_CAPTION, Sample
from .schema import (
    BLOCK_ROWS,
    OF_SAMPLES,
    PAIRS_SCHEMA,
    REJECTED_SCHEMA,
    Rejection,
    blocks_of,
    samples_in,
)

FORMAT = 1
DIGEST_BYTES = 16
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PairsTable:
    """The samples of one main dataset, in the order of their names, and the table's manifest."""

    samples: SampleRows
    manifest: Mapping[str, Any]


def table_folder(configuration: Configuration, main: Dataset, flavour: Flavour) -> Path:
    """Return where the table of `main` under these settings lies, or would lie."""
    name = fingerprint(pairs_recipe(configuration, main, flavour))
    return configuration.pairs_folder(main) / name


def write_pairs(
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    rows: Iterable[tuple[Sample, Sequence[str]]],
    rejections: Sequence[Rejection],
    inputs: str,
    accept: bool,
    folders: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make `folder` hold this table, unless it does already, and return the manifest.

    Args:
        folders: dataset id -> the folder that its pictures lie in.
        rows: each sample and its warning codes; taken one by one, never held together.
        accept: whether to go on without what was rejected. What was accepted before stays
            accepted as long as nothing else is rejected.
    """
    before = manifest_in(folder)
    if not accept and before is not None and before["accepted"]:
        accept = set(rejections) <= set(read_rejections(folder))
    warnings, count = Counter[str](), 0

    def counted() -> Iterator[tuple[Sample, Sequence[str]]]:
        nonlocal count
        for row in rows:
            count += 1
            warnings.update(row[1])
            yield row

    pairs = _kept_as(folder, "pairs", PAIRS_SCHEMA, blocks_of(counted()))
    rejected = _kept_as(folder, "rejected", REJECTED_SCHEMA, _rejected_blocks(rejections))
    manifest = {
        "format": FORMAT,
        "inputs": inputs,
        "accepted": accept or not rejections,
        "samples": count,
        "rejected": dict(sorted(Counter(row.reason for row in rejections).items())),
        "rejected_samples": len({row.sample for row in rejections}),
        "warnings": dict(sorted(warnings.items())),
        "pairs": pairs,
        "rejected_table": rejected,
        "folders": dict(folders or {}),
    }
    if manifest != before:
        if not (folder / RECIPE_FILE).exists():
            atomic.write_json(folder / RECIPE_FILE, recipe)
        atomic.write_json(folder / MANIFEST, sealed(manifest))
    return manifest


def accept_rejections(folder: Path) -> dict[str, Any]:
    """Let later stages go on without what the table in `folder` rejected; return the manifest."""
    manifest = manifest_in(folder)
    assert manifest is not None, "only a table that is there can be accepted"
    if not manifest["accepted"]:
        manifest["accepted"] = True
        atomic.write_json(folder / MANIFEST, sealed(manifest))
    return manifest


_FIELDS = {"accepted": bool, "samples": int, "rejected_samples": int}
_FIELDS |= dict.fromkeys(("pairs", "rejected_table"), str)


class _Same(Exception):
    """Raised when the table that was written is there already; `name` is its file."""

    def __init__(self, name: str) -> None:
        self.name = name


def _kept_as(folder: Path, what: str, schema: pa.Schema, blocks: Iterable[pa.RecordBatch]) -> str:
    """Write a table, never held whole, into a file named by its content; return the name."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def name() -> str:
        return f"{what}-{digest.hexdigest()[:16]}.parquet"

    try:
        with atomic.new_file(folder / f"{what}.parquet", named=name) as file:

            def write(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            write_blocks(schema, blocks, write=write)
            if (folder / name()).is_file():
                raise _Same(name())
    except _Same as same:
        return same.name
    return name()


def verified(path: Path) -> Path:
    """Return `path`, the file of a table, if it holds what its name says.

    Raises:
        Damaged: it holds something else.
    """
    if not has_digest(path, path.stem.rpartition("-")[2]):
        raise Damaged(
            f"The table {path} is not what was written.", "Delete it, then run `qedit pair`."
        )
    return path


def _rejected_blocks(rejections: Sequence[Rejection]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rejections), BLOCK_ROWS):
        block = rejections[start : start + BLOCK_ROWS]
        columns = {name: [getattr(row, name) for row in block] for name in REJECTED_SCHEMA.names}
        yield pa.RecordBatch.from_pydict(columns, schema=REJECTED_SCHEMA)


def manifest_in(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the table in `folder`; None where no table is complete.

    Raises:
        Damaged: there is one, but it is not one of ours.
    """
    path = folder / MANIFEST
    try:
        manifest = read_sealed(path)
        counts = [*manifest["rejected"].values(), *manifest["warnings"].values()]
        fits = all(type(manifest[name]) is kind for name, kind in _FIELDS.items())
        fits &= all(type(count) is int for count in counts)
        fits &= all(type(place) is str for place in manifest.get("folders", {}).values())
        if fits and manifest["format"] == FORMAT:
            return manifest
    except FileNotFoundError:
        return None
    except Broken as error:
        if isinstance(error.__cause__, OSError):  # nothing is to be deleted where the disk fails
            raise error.__cause__ from None
    except (KeyError, AttributeError):
        pass
    raise Damaged(
        f"{path} is not a manifest of a pairs table.", f"Delete {folder}, then run `qedit pair`."
    )


def whole_manifest_in(folder: Path) -> dict[str, Any] | None:
    """Return the manifest in `folder` if both tables are there: a damaged one is deleted by hand.

    Raises:
        Damaged: as `manifest_in` does.
    """
    manifest = manifest_in(folder)
    if manifest is None:
        return None
    tables = (folder / manifest[name] for name in ("pairs", "rejected_table"))
    return manifest if all(table.is_file() for table in tables) else None


def samples_before(folder: Path) -> Iterator[Sample]:
    """Yield the samples of the table in `folder`; none where there is no sound table."""
    manifest = whole_manifest_in(folder)
    try:
        table = verified(folder / manifest["pairs"]) if manifest else None
    except Damaged:
        return  # it is made anew in a moment
    for block in table_blocks(table) if table else ():
        yield from samples_in(block)


def read_rejections(folder: Path) -> list[Rejection]:
    """Return what the table in `folder` rejected, and why."""
    manifest = whole_manifest_in(folder)
    if manifest is None:
        return []
    rows = table_in(verified(folder / manifest["rejected_table"]).read_bytes()).to_pylist()
    return [Rejection(**row) for row in rows]


def read_pairs(configuration: Configuration, main: Dataset, flavour: Flavour) -> PairsTable:
    """Read the samples of `main` under these settings.

    Raises:
        NotComplete: as `accepted_table` says.
    """
    path, manifest = accepted_table(configuration, main, flavour)
    return PairsTable(SampleRows(table_in(verified(path).read_bytes(), OF_SAMPLES)), manifest)


def accepted_table(
    configuration: Configuration, main: Dataset, flavour: Flavour
) -> tuple[Path, dict[str, Any]]:
    """Return the file of the table of `main`, of which nothing is read yet, and the manifest.

    Raises:
        NotComplete: `pair` has not run for these settings, has run since for another run's
            pictures, or rejected samples that the user has not agreed to go on without.
    """
    folder = table_folder(configuration, main, flavour)
    manifest = whole_manifest_in(folder)
    if manifest is None:
        beside = made_for_others(
            folder, flavour, fits=lambda other, recipe: recipe.get("vl_area") == other.vl_area
        )
        raise NotComplete(
            f"There is no pairs table of dataset {main.id} for {flavour.name} "
            f"with these settings yet{beside}.",
            "Run `qedit pair`.",
        )
    refuse_others(configuration, main, manifest.get("folders", {}))
    if not manifest["accepted"]:
        count = manifest["rejected_samples"]
        raise NotComplete(
            f"`qedit pair` rejected {count} of {count + manifest['samples']} samples of "
            f"dataset {main.id}.",
            "Fix them and run `qedit pair`, or go on without them: `qedit pair --on-reject skip`.",
        )
    return folder / manifest["pairs"], manifest


def used_main_datasets(configuration: Configuration) -> tuple[Dataset, ...]:
    """Return the datasets whose samples are cached: those trained on and those only evaluated."""
    return (*configuration.main_datasets(), *configuration.eval_datasets())


def picture_folders(configuration: Configuration) -> dict[str, Path]:
    """Return dataset id -> the folder its pictures lie in."""
    return {
        dataset.id: Path(dataset.instance_data_dir)
        for dataset in configuration.datasets
        if dataset.instance_data_dir is not None
    }


def captions_beside(settings: Settings) -> tuple[str, ...]:
    """Return the captions that every reference set gets too: the null and negative prompt."""
    return tuple(dict.fromkeys((NULL_CAPTION, settings.validation_negative_prompt)))
