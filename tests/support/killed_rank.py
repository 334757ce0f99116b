"""Runs `qedit` and kills one of its processes in a step: rank and step come first."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from qedit.pipeline.cli import main
from qedit.stages.train.trainer import Trainer


def kill_in(step: int) -> None:
    """Have this process be killed in `step`, as by a kernel that needs memory."""
    really = Trainer.step

    def dying(trainer: Trainer, at: int, *args: Any, **options: Any) -> Any:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(trainer, at, *args, **options)

    Trainer.step = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, step, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        kill_in(int(step))
    main(words)
