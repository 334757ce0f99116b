"""The guard that keeps qedit from writing into its own source folders."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import WrongUse

ROOMS = ("cache", "config", "pipeline", "stages")


def refuse_source_folder(path: Path) -> None:
    """Make sure that `path` is no source folder of a checkout of qedit, nor inside one.

    The default `cache_dir` is `cache`: in the checkout itself that is source code.

    Raises:
        WrongUse: it is.
    """
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if folder.name in ROOMS and _is_checkout(folder.parent):
            raise WrongUse(
                f"{path} lies in {folder}, a source folder of qedit itself.",
                "Work in a folder of your own: add `-C some/folder`.",
            )


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return project.is_file() and bool(
        re.search(r'^name = "qedit"$', project.read_text(encoding="utf-8"), re.MULTILINE)
    )
