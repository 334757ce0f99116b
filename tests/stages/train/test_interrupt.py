"""The first Ctrl-C finishes the step and writes a checkpoint; the second leaves at once."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from quiet import Quiet
from training import checkpoint_names, train

from qedit.stages.train import loop


class Interrupting(Quiet):
    """Presses Ctrl-C while a given step is shown."""

    def __init__(self, *, at_step: int, times: int = 1) -> None:
        super().__init__()
        self.at_step, self.times, self.shown = at_step, times, 0

    def note(self, **values: str) -> None:
        self.shown += 1
        if self.shown == self.at_step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(
    made: Any, request: pytest.FixtureRequest
) -> None:
    # a shell that runs the tests in the background has them ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    configuration = made(checkpoint_step_interval=100)
    progress = Interrupting(at_step=3)
    with pytest.raises(KeyboardInterrupt):
        loop.run(configuration, progress, device="cpu")
    assert checkpoint_names(configuration) == ["checkpoint-3"]
    assert "Run `qedit train` again" in progress.said[-1]
    assert train(configuration).kept == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves_at_once(made: Any) -> None:
    configuration = made(checkpoint_step_interval=100)
    with pytest.raises(KeyboardInterrupt):
        loop.run(configuration, Interrupting(at_step=3, times=2), device="cpu")
    assert checkpoint_names(configuration) == []
