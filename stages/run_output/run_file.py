"""run.json: what decides the run in an output_dir. `train` writes it; `gc` and the page read it.

In `as-run/` beside it lie both configuration files as they were run, `--set` included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.errors import Broken, Damaged
from ...cache.files.atomic import readable_json, write_json
from ...cache.files.decides_nothing import put_text
from ...cache.files.sealed import read_sealed, sealed
from ...config.configuration import Configuration

RUN_FILE = "run.json"
STATE_FILE = "state.json"  # in the folder of a checkpoint; it holds the run as well
AS_RUN = "as-run"
CONFIG_FILE = "config.json"
DATA_FILE = "multidatabackend.json"


def write_run(output_dir: Path, run: Mapping[str, Any]) -> None:
    """Write `run`, as `train` describes it, into `output_dir`."""
    write_json(output_dir / RUN_FILE, sealed(run))


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """Return the run that `output_dir` holds; None if it holds none.

    It is what run.json says or, where that is damaged or gone, what the newest checkpoint says.

    Raises:
        Damaged: run.json cannot be read, and there is no checkpoint.
    """
    try:
        return _run_in(output_dir / RUN_FILE)
    except (FileNotFoundError, Broken) as error:
        run = _run_of_checkpoint(output_dir)
        if run is None and isinstance(error, Broken):
            raise Damaged(
                f"{output_dir / RUN_FILE} cannot be read: {error}.",
                "Delete that file if its folder holds no LoRA: `qedit train` then begins anew. "
                "Else choose another `output_dir`: no checkpoint is left that says the same.",
            ) from error
        return run


def damage_of_run(output_dir: Path) -> str | None:
    """Return what is wrong with run.json, as a sentence; None if nothing is, or there is none."""
    path = output_dir / RUN_FILE
    try:
        _run_in(path)
    except FileNotFoundError:
        return None
    except Broken as error:
        return f"{path} cannot be read: {error}."
    return None


def _run_of_checkpoint(output_dir: Path) -> dict[str, Any] | None:
    """Return the run in the newest checkpoint whose state can be read; None if there is none."""
    states = output_dir.glob(f"checkpoint-*/{STATE_FILE}")
    for path in sorted(states, key=lambda path: (len(path.parent.name), path), reverse=True):
        with contextlib.suppress(Broken, OSError):
            return _run_in(path)
    return None


def _run_in(path: Path) -> dict[str, Any]:
    """Return the run in run.json, or in the state.json of a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        Broken: it is not as it was written, or of another shape.
    """
    fields = read_sealed(path)
    run: dict[str, Any] = fields if path.name == RUN_FILE else fields.get("run", {})
    try:
        known = run.get("history", [])
        data = [run.get("datasets", {}), *(entry["datasets"] for entry in known)]
        parts = [run.get(name, {}) for name in ("settings", "model", "recipes", "tables")] + data
        parts += [facts for datasets in data for facts in datasets.values()]
        is_a_run = all(isinstance(part, dict) for part in parts)
        is_a_run = is_a_run and all(isinstance(entry["from_step"], int) for entry in known)
    except (AttributeError, KeyError, TypeError):
        is_a_run = False
    if not is_a_run:
        raise Broken("it does not describe a run")
    return run


def as_run_files(output_dir: Path) -> tuple[Path, Path]:
    """Return the paths of the two files in a run's folder."""
    return output_dir / AS_RUN / CONFIG_FILE, output_dir / AS_RUN / DATA_FILE


def write_as_run(configuration: Configuration) -> dict[Path, str]:
    """Write this configuration to both files, without defaults; return their paths and texts."""
    settings = configuration.settings
    written = settings.model_dump(mode="json", exclude_unset=True)
    written.pop("data_backend_config", None)  # it lies beside it, and is named by --data
    datasets = [
        dataset.model_dump(mode="json", exclude_unset=True) for dataset in configuration.datasets
    ]
    texts = map(readable_json, (written, datasets))
    files = dict(zip(as_run_files(settings.output_dir), texts, strict=True))
    for path, text in files.items():
        put_text(path, text)
    return files
