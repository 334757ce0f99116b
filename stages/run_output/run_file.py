"""run.json: what decides the run in an output_dir. `train` writes it; `gc` and the page read it.

In `as-run/` beside it lie both configuration files as they were run, `--set` included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.errors import Damaged
from ...cache.files.atomic import readable_json, write_json, write_text
from ...config.configuration import Configuration

RUN_FILE = "run.json"
AS_RUN = "as-run"
CONFIG_FILE = "config.json"
DATA_FILE = "multidatabackend.json"


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


def as_run_files(output_dir: Path) -> tuple[Path, Path]:
    """Return the paths of the two files in a run's folder."""
    return output_dir / AS_RUN / CONFIG_FILE, output_dir / AS_RUN / DATA_FILE


def write_as_run(configuration: Configuration) -> tuple[Path, Path]:
    """Write this configuration to both files, without defaults; return their paths."""
    settings = configuration.settings
    written = settings.model_dump(mode="json", exclude_unset=True)
    written.pop("data_backend_config", None)  # it lies beside it, and is named by --data
    datasets = [
        dataset.model_dump(mode="json", exclude_unset=True) for dataset in configuration.datasets
    ]
    files = as_run_files(settings.output_dir)
    for path, value in zip(files, (written, datasets), strict=True):
        text = readable_json(value)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return files
