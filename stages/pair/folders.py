"""The folders of all datasets that a run needs: their listings, and one digest of all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...cache.errors import WrongUse
from ...config.configuration import Configuration
from ..samples.recipe import picture_datasets
from ..samples.table import used_main_datasets
from .scan import Scan, scan

Scans = Mapping[str, Scan]


def scan_all(configuration: Configuration) -> dict[str, Scan]:
    """List the folders of all targets, references and masks, by dataset id.

    Raises:
        WrongUse: folders that are missing or hold no picture, all of them at once.
    """
    scans, wrong = dict[str, Scan](), list[str]()
    needed = {
        dataset.id: dataset.instance_data_dir or Path()
        for main in used_main_datasets(configuration)
        for dataset in picture_datasets(configuration, main)
    }
    for name, folder in needed.items():
        if not folder.is_dir():
            fault = "is a file" if folder.exists() else "does not exist"
        else:
            scans[name] = scan(folder)
            fault = "" if scans[name].pictures else _no_pictures(scans[name])
        if fault:
            wrong.append(f"Dataset {name}: the folder {folder} {fault}.")
    if wrong:
        raise WrongUse(
            "\n".join(wrong),
            f"Fix `instance_data_dir`; it is relative to the working directory, {Path.cwd()}.",
        )
    return scans


def digest_of(configuration: Configuration, scans: Scans) -> str:
    """Return a digest of all folders, names, sizes and times that this run's tables depend on."""
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


def _no_pictures(found: Scan) -> str:
    if found.problems:
        first = found.problems[0]
        return f"holds no usable picture: {first.path}: {first.detail}"
    if any(found.folder.iterdir()):
        return "holds no pictures (files ending in .jpg, .png, .webp ...)"
    return "is empty"
