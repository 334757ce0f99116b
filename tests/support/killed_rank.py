"""Runs `qedit` and kills one of its processes in a step, or has it hang: how, rank, step first."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from qedit.pipeline.__main__ import main
from qedit.stages.train.trainer import Trainer


def fail_in(step: int, how: str) -> None:
    """Have this process be killed in `step`, as by a kernel that needs memory, or hang there."""
    really = Trainer.step

    def dying(trainer: Trainer, at: int, *args: Any, **options: Any) -> Any:
        if at == step and how == "hangs":
            time.sleep(1000)
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(trainer, at, *args, **options)

    Trainer.step = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    how, rank, step, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        fail_in(int(step), how)
    sys.argv[1:] = words
    main()
