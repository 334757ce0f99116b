"""Pairs tables that no run names any more, and files that others have replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...config.configuration import Configuration
from ...stages.samples.table import MANIFEST, manifest_in, used_main_datasets
from ...stages.samples.tail_key_cache import belongs_to
from ...stages.stores.pins import Use, use_of


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
