"""The files that `qedit init` writes, and its messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache.files.atomic import write_json
from ..cache.files.workspace import refuse_source_folder
from ..config.comments import parse
from ..config.schema import SCHEMA_NAMES, schema_of
from ..stages.pair.proposal import propose
from ..stages.stage import Progress


def write_first_files(
    targets: Path, references: Sequence[Path], progress: Progress, *, dry_run: bool
) -> dict[str, Any]:
    """Look at the folders, say what is chosen and why, and write both files and their schemas.

    Raises:
        WrongUse: folders from which no pairs can be made, or files that are there already.
    """
    refuse_source_folder(Path())
    proposal = propose(targets, references)
    for reason in proposal.reasons:
        progress.say(reason)
    if dry_run:
        progress.say(f"{proposal.config}\n{proposal.data}")
    else:
        config, data = proposal.write(Path())
        for file, name in SCHEMA_NAMES.items():
            write_json(Path(name), schema_of(file))
        progress.say(
            f"Written: {config} and {data}, and for editors a JSON Schema of each. "
            f"Next: `qedit pair --config {config}`."
        )
    return {
        "stage": "init",
        "reasons": list(proposal.reasons),
        "config": parse(proposal.config),
        "data": parse(proposal.data),
        "written": not dry_run,
    }
