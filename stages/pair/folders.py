"""Folders: the datasets a run needs, what lies in each, and one digest of all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...cache.errors import WrongUse
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..samples.table import used_main_datasets
from .scan import Scan, scan

Scans = Mapping[str, Scan]


def scan_all(configuration: Configuration) -> dict[str, Scan]:
    """List the folders of all targets, references and masks, by dataset id.

    Raises:
        WrongUse: folders that are missing or hold no picture, all of them at once.
    """
    scans, wrong = {}, []
    for main in used_main_datasets(configuration):
        for dataset in (main, *partners_of(configuration, main)):
            if dataset.id not in scans:
                folder = dataset.instance_data_dir or Path()
                if fault := _folder_fault(folder):
                    wrong.append(f"Dataset {dataset.id}: the folder {folder} {fault}.")
                    continue
                scans[dataset.id] = found = scan(folder)
                if not found.pictures:
                    wrong.append(_no_pictures(dataset, found))
    if wrong:
        raise WrongUse(
            "\n".join(dict.fromkeys(wrong)),
            f"Correct `instance_data_dir`; it is relative to the working directory, {Path.cwd()}.",
        )
    return scans


def digest_of(configuration: Configuration, scans: Scans) -> str:
    """A digest of all folders, names, sizes and times that the tables of this run depend on."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(scans):
        digest.update(f"dataset {name} {scans[name].folder}\n".encode(errors="surrogateescape"))
        scans[name].digest_into(digest)
    for main in used_main_datasets(configuration):
        for table in (main.parquet, main.csv, main.jsonl):
            if table is not None and table.path.is_file():
                facts = table.path.stat()
                times = f"{facts.st_mtime_ns} {facts.st_ctime_ns}"
                digest.update(f"table {main.id} {facts.st_size} {times}\n".encode())
    return digest.hexdigest()


def partners_of(configuration: Configuration, main: Dataset) -> tuple[Dataset, ...]:
    """The datasets whose pictures belong to the targets of `main`: references, then masks."""
    mask = configuration.mask_of(main)
    return (*configuration.references_of(main), *([mask] if mask else []))


def _folder_fault(folder: Path) -> str:
    if not folder.exists():
        return "does not exist"
    return "" if folder.is_dir() else "is a file"


def _no_pictures(dataset: Dataset, found: Scan) -> str:
    if found.problems:
        first = found.problems[0]
        why = f"holds no usable picture: {first.path}: {first.detail}"
    elif any(found.folder.iterdir()):
        why = "holds no pictures (files ending in .jpg, .png, .webp ...)"
    else:
        why = "is empty"
    return f"Dataset {dataset.id}: the folder {found.folder} {why}."
