"""Worker processes of the caching stages that end early: none hangs, none is silent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from quiet import Quiet
from small_run import loaded, make_run

from qedit.cache.errors import QeditError
from qedit.config.loading import Configuration
from qedit.stages.encoding.device_options import DeviceOptions
from qedit.stages.encoding.devices import on_each_device
from qedit.stages.encoding.progress_messages import saying_what_is_kept
from qedit.stages.encoding.run_on_device import Totals
from qedit.stages.stage import Progress

TWO = DeviceOptions(devices=("cpu", "cpu"))
LINES = 20_000  # more than a pipe holds

pytestmark = pytest.mark.full


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    monkeypatch.chdir(make_run(tmp_path))
    return loaded()


def talk(configuration: Any, progress: Progress, options: DeviceOptions) -> Totals:
    """A worker that never stops talking."""
    for number in range(LINES):
        progress.say(f"line {number}")
    return Totals()


def work_slowly(configuration: Any, progress: Progress, options: DeviceOptions) -> Totals:
    """A worker that takes a moment to put away what it has at hand."""
    with saying_what_is_kept(progress, lambda: 3, "rows"):
        progress.say(str(os.getpid()))
        try:
            time.sleep(100)
        finally:
            time.sleep(0.5)
    return Totals()


class _Pressed:
    """Ctrl-C comes when a worker reads what it is to do."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[int, int]]:
        return signal.raise_signal, (signal.SIGINT,)  # type: ignore[return-value]


def idle(pressed: None, configuration: Any, progress: Progress, options: DeviceOptions) -> Totals:
    time.sleep(100)
    return Totals()


def test_workers_do_not_wait_for_one_who_hears_no_more(configuration: Configuration) -> None:
    class Closed(Quiet):
        def say(self, line: str) -> None:
            raise BrokenPipeError

    raised: list[BaseException] = []

    def run() -> None:
        try:
            on_each_device(TWO, talk, configuration, Closed())
        except BrokenPipeError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert len(raised) == 1


def test_ctrl_c_lets_workers_put_away_and_say_what_is_kept(configuration: Configuration) -> None:
    class Pressing(Quiet):
        heard = 0

        def say(self, line: str) -> None:
            os.kill(int(line), signal.SIGINT)  # as a terminal does, to all processes at once
            self.heard += 1
            if self.heard == len(TWO.devices):
                raise KeyboardInterrupt

    quiet = Pressing()
    with pytest.raises(KeyboardInterrupt):
        on_each_device(TWO, work_slowly, configuration, quiet)
    assert quiet.warned == 2 * ["3 rows were made and are kept; the part in work is given up."]


def test_ctrl_c_before_a_worker_has_begun_ends_it_without_a_word(
    configuration: Configuration, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(QeditError, match="ended without an error message"):
        on_each_device(TWO, partial(idle, _Pressed()), configuration, Quiet())
    assert capfd.readouterr().err == ""
