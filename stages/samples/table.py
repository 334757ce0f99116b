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
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...cache.errors import Damaged, NotComplete
from ...cache.files import atomic
from ...cache.files.fingerprint import fingerprint, has_digest
from ...cache.files.sealed import sealed, unsealed
from ...cache.format.tables import table_blocks, table_in, write_blocks
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...config.settings import Settings
from ..models.flavours import Flavour
from .lazy_samples import SampleRows
from .other_flavours import made_for_others
from .recipe import pairs_recipe as pairs_recipe
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
from .source_folders import refuse_others

FORMAT = 1
DIGEST_BYTES = 16
MANIFEST = "manifest.json"
RECIPE = "recipe.json"


@dataclass(frozen=True)
class PairsTable:
    """The samples of one main dataset, and what was turned away.

    Attributes:
        samples: in the order of their names.
        rejected: reason code -> how many.
        warnings: warning code -> how many samples carry it.
        accepted: whether the user accepted to go on without what was rejected.
        inputs: a digest of the folders, names, sizes and times of all files looked at.
        where: the folder of the table.
        facts: the manifest as it stands on disk.
    """

    samples: Sequence[Sample]
    rejected: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    accepted: bool = True
    inputs: str = ""
    where: Path = Path()
    facts: dict[str, Any] = field(default_factory=dict)


def table_folder(configuration: Configuration, main: Dataset, flavour: Flavour) -> Path:
    """Where the table of `main` under these settings lies, or would lie."""
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
    """Make `folder` hold this table and give its manifest; an equal table is not written again.

    Args:
        folders: by dataset id, those that the pictures lie in.
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
        if not (folder / RECIPE).exists():
            atomic.write_json(folder / RECIPE, recipe)
        atomic.write_json(folder / MANIFEST, sealed(manifest))
    return manifest


def accept_rejections(folder: Path) -> dict[str, Any]:
    """Let later stages go on without what the table in `folder` turned away."""
    manifest = manifest_in(folder)
    assert manifest is not None, "only a table that is there can be accepted"
    if not manifest["accepted"]:
        manifest["accepted"] = True
        atomic.write_json(folder / MANIFEST, sealed(manifest))
    return manifest


class _Same(Exception):
    """The table that was written is there already; `name` is its file."""

    def __init__(self, name: str) -> None:
        self.name = name


def _kept_as(folder: Path, what: str, schema: pa.Schema, blocks: Iterable[pa.RecordBatch]) -> str:
    """Have a table in `folder`, in a file named by its content; the table is never held whole."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def name() -> str:
        return f"{what}-{digest.hexdigest()[:16]}.parquet"

    try:
        with atomic.new_file(folder / f"{what}.parquet", named=name) as file:

            def write(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            write_blocks(schema, blocks, write=write)
            if (folder / name()).exists():
                raise _Same(name())
    except _Same as same:
        return same.name
    return name()


def _table_at(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    return table_in(verified(path).read_bytes(), columns)


def verified(path: Path) -> Path:
    """`path`, a table's file, whose name says what it must hold.

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
    """The manifest of the table in `folder`; None where no table is complete.

    Raises:
        Damaged: there is one, but it is not one of ours.
    """
    path = folder / MANIFEST
    try:
        manifest = unsealed(json.loads(path.read_text(encoding="utf-8")))
        if manifest["format"] == FORMAT:
            return manifest
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(
        f"{path} is not a manifest of a pairs table.", f"Delete {folder}, then run `qedit pair`."
    )


def is_whole(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether both tables that a manifest names are there: a damaged one is deleted by hand."""
    return all((folder / manifest[name]).is_file() for name in ("pairs", "rejected_table"))


def read_table_in(folder: Path) -> PairsTable | None:
    """The table in `folder`, whether or not its rejections were accepted; None if there is none."""
    manifest = manifest_in(folder)
    if manifest is None or not is_whole(folder, manifest):
        return None
    return PairsTable(
        samples=SampleRows(_table_at(folder / manifest["pairs"], OF_SAMPLES)),
        rejected=manifest["rejected"],
        warnings=manifest["warnings"],
        accepted=manifest["accepted"],
        inputs=manifest["inputs"],
        where=folder,
        facts=manifest,
    )


def samples_before(folder: Path) -> Iterator[Sample]:
    """The samples of the table in `folder`, block by block; none where there is no table."""
    manifest = manifest_in(folder)
    if manifest is None or not is_whole(folder, manifest):
        return
    try:
        table = verified(folder / manifest["pairs"])
    except Damaged:
        return  # it is made anew in a moment
    for block in table_blocks(table):
        yield from samples_in(block)


def read_rejections(folder: Path) -> list[Rejection]:
    """What the table in `folder` turned away, and why."""
    manifest = manifest_in(folder)
    if manifest is None or not is_whole(folder, manifest):
        return []
    rows = _table_at(folder / manifest["rejected_table"]).to_pylist()
    return [Rejection(**row) for row in rows]


def read_pairs(configuration: Configuration, main: Dataset, flavour: Flavour) -> PairsTable:
    """The samples of `main` under these settings.

    Raises:
        NotComplete: `pair` has not run for these settings, has run since for another run's
            pictures, or turned samples away that nobody has accepted to do without.
    """
    folder = table_folder(configuration, main, flavour)
    table = read_table_in(folder)
    if table is None:
        beside = made_for_others(
            folder, flavour, fits=lambda other, recipe: recipe.get("vl_area") == other.vl_area
        )
        raise NotComplete(
            f"There is no pairs table of dataset {main.id} for {flavour.name} "
            f"with these settings yet{beside}.",
            "Run `qedit pair`.",
        )
    refuse_others(configuration, main, table.facts.get("folders", {}))
    if not table.accepted:
        count = table.facts["rejected_samples"]
        raise NotComplete(
            f"`qedit pair` rejected {count} of {count + len(table.samples)} samples of "
            f"dataset {main.id}, and nobody has accepted that yet.",
            "Mend them and run `qedit pair`, or go on without them: `qedit pair --on-reject skip`.",
        )
    return table


def used_main_datasets(configuration: Configuration) -> tuple[Dataset, ...]:
    """The datasets whose samples are cached: those trained on and those only evaluated."""
    return (*configuration.main_datasets(), *configuration.eval_datasets())


def picture_folders(configuration: Configuration) -> dict[str, Path]:
    """Dataset id -> the folder its pictures lie in."""
    return {
        dataset.id: Path(dataset.instance_data_dir)
        for dataset in configuration.datasets
        if dataset.instance_data_dir is not None
    }


def captions_beside(settings: Settings) -> tuple[str, ...]:
    """Captions that every reference set gets besides its own: the null and negative prompt."""
    return tuple(dict.fromkeys((NULL_CAPTION, settings.validation_negative_prompt)))
