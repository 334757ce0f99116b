"""TensorBoard and Weights & Biases: the numbers of metrics.jsonl, where people look at them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...cache.errors import WrongUse
from ...cache.files.atomic import write_json
from ...config.settings import Settings

TENSORBOARD_FOLDER = "tensorboard"
# names the run of Weights & Biases that this folder's training belongs to
WANDB_FILE = "wandb.json"


@runtime_checkable
class Tracker(Protocol):
    """Receives the numbers of a run."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of `step`; names with a slash belong together."""
        ...

    def close(self) -> None:
        """Write everything that is still buffered."""
        ...


def refuse_missing_tracker(settings: Settings) -> None:
    """Raise before anything is loaded if the package of `report_to` is not installed.

    Raises:
        WrongUse: says what to type.
    """
    name = settings.report_to
    if name != "none" and find_spec(name) is None:
        raise WrongUse(
            f"`report_to` {name} needs the package {name}, which is not installed.",
            f"Type `pip install 'qedit[{name}]'`, or set `report_to` to none.",
        )


def tracker_of(
    settings: Settings, run: Mapping[str, Any], *, after_step: int | None
) -> Tracker | None:
    """Return the tracker that `report_to` names; it continues the log of this output folder.

    Args:
        run: what decides the run, for the tracker to show.
        after_step: the checkpoint's step; None where the run begins.
    """
    if settings.report_to == "tensorboard":
        return TensorBoard(settings.output_dir / TENSORBOARD_FOLDER, after_step=after_step)
    if settings.report_to == "wandb":
        return WeightsAndBiases(settings, run)
    return None


class TensorBoard:
    """Writes event files to output/<run>/tensorboard."""

    def __init__(self, folder: Path, *, after_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what was logged beyond the checkpoint is hidden: those steps come again
        purged = None if after_step is None else after_step + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purged)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Logs to the project `tracker_project_name`; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, settings: Settings, run: Mapping[str, Any]) -> None:
        folder = settings.output_dir
        self._run = import_module("wandb").init(
            project=settings.tracker_project_name,
            name=folder.absolute().name,
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(run),
        )
        # steps that are made again after a crash may be logged again
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    """Return the id of this folder's run, made once: a resumed training continues it."""
    path = folder / WANDB_FILE
    if not path.is_file():
        write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
