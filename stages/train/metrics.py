"""metrics.jsonl, and what follows it: one line a step, each step once.

Beside the lines of steps there are lines of evaluations (`held_out`) and of previews
(`previews`). A number that is none (a loss of NaN) is null. A tracker (TensorBoard, Weights &
Biases) gets the same numbers.
"""

from __future__ import annotations

import json
import resource
import secrets
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...cache.errors import WrongUse
from ...cache.files.atomic import write_json
from ...config.settings import Settings
from ..run_output.metrics_file import append_metrics, cut_metrics

TENSORBOARD_FOLDER = "tensorboard"
# names the run of Weights & Biases that this folder's training belongs to
WANDB_FILE = "wandb.json"


class Metrics:
    """Writes the run's numbers to metrics.jsonl, and to a tracker where there is one.

    Opening cuts off what lies beyond the checkpoint's step: those steps are made, and logged,
    again.

    Args:
        after_step: the checkpoint's step; None where the run begins.
    """

    def __init__(
        self, output_dir: Path, *, after_step: int | None, tracker: Tracker | None = None
    ) -> None:
        self._output_dir, self._tracker = output_dir, tracker
        cut_metrics(output_dir, after_step=-1 if after_step is None else after_step)

    def add(self, *, step: int, **values: Any) -> None:
        """Append a line about `step`."""
        append_metrics(self._output_dir, {"step": step, **values})
        if self._tracker:
            self._tracker.add(step, dict(_flat(values)))


class NullMetrics:
    """Writes nothing: of several processes the first one alone has a log."""

    def add(self, *, step: int, **values: Any) -> None:
        """Do nothing."""


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: on a GPU what torch has allocated, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in `values`, those of nested mappings as "outer/inner"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)


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
    """Writes event files to output/<run>/tensorboard; names with a slash belong together."""

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


Tracker = TensorBoard | WeightsAndBiases
