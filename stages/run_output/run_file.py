"""run.json: what decides the run in an output_dir. `train` writes it; `gc` and the page read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.errors import Damaged
from ...cache.files.atomic import write_json

RUN_FILE = "run.json"


def write_run(output_dir: Path, run: Mapping[str, Any]) -> None:
    """Write `run`, as `train` describes it, into `output_dir`."""
    write_json(output_dir / RUN_FILE, dict(run))


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """Return the run that `output_dir` holds; None if it holds none.

    Raises:
        Damaged: run.json is not a JSON object, or what it says of the run is none.
    """
    path = output_dir / RUN_FILE
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_bytes())
        if not isinstance(run, dict):
            raise ValueError("it is not a JSON object")
        for name in ("model", "recipes", "settings"):
            if not isinstance(run.get(name, {}), dict):
                raise ValueError(f"{name} in it is not a JSON object")
    except ValueError as error:
        raise Damaged(
            f"{path} cannot be read: {error}.",
            "Delete that file and run `qedit train`, which writes it again; or move the folder "
            "away.",
        ) from error
    return run
