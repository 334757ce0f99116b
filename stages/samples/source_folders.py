"""Of which folders a pairs table was made.

A renamed folder is the same data, so no folder is in a table's recipe. But two runs may share a
cache folder and give one id to different folders: then the table is of who ran `pair` last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...cache.errors import NotComplete
from ...config.configuration import Configuration
from ...config.datasets import Dataset


def folders_of(configuration: Configuration, main: Dataset) -> dict[str, str]:
    """Dataset id -> the folder of its pictures, as configured: of all that pairs of `main` need."""
    mask = configuration.mask_of(main)
    datasets = (main, *configuration.references_of(main), *([mask] if mask else []))
    return {dataset.id: str(dataset.instance_data_dir) for dataset in datasets}


def refuse_others(configuration: Configuration, main: Dataset, made_of: Mapping[str, str]) -> None:
    """Make sure that a table of `main` was made of the folders that are configured.

    One that is gone may be another one's old name, or lie on another machine: nothing is known.

    Args:
        made_of: what `folders_of` gave when it was made.

    Raises:
        NotComplete: it was made of others, which are still there.
    """
    for dataset, here in folders_of(configuration, main).items():
        there = made_of.get(dataset, here)
        if there != here and _are_two(Path(there), Path(here)):
            raise NotComplete(
                f"The pairs of dataset {main.id} were last made of the pictures in {there}, "
                f"not of those in {here}.",
                f"Run `qedit pair`. If {there} is another run's, give each an `id` of its own.",
            )


def _are_two(one: Path, other: Path) -> bool:
    return one.is_dir() and other.is_dir() and not one.samefile(other)
