"""Previews are decoded by a process beside training, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from filled_run import made_configuration
from quiet import Quiet

from qedit.stages.train.evaluation import preview_process as decoding_module
from qedit.stages.train.evaluation.preview_process import Decoding


class Child:
    """A process that has ended, with this return code; None: it is at work."""

    started: ClassVar[list[list[str]]] = []
    pid = 1

    def __init__(self, command: list[str], **_: Any) -> None:
        Child.started.append(command)
        self.returncode: int | None = 0

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoding, Quiet]:
    configuration = made_configuration(tmp_path, validation_disable=False)
    (configuration.settings.output_dir / "previews").mkdir(parents=True)
    Child.started = []
    monkeypatch.setattr(decoding_module.subprocess, "Popen", Child)
    monkeypatch.setattr(decoding_module.os, "setpriority", lambda *_: None)
    monkeypatch.setattr(decoding_module, "available_bytes", lambda: 1 << 40)
    quiet = Quiet()
    return Decoding(configuration, quiet), quiet


def start(decoding: Decoding) -> None:
    decoding.start(beside=torch.device("cpu"), trained=True)


def test_one_child_at_a_time(decoding: tuple[Decoding, Quiet]) -> None:
    starting, _ = decoding
    start(starting)
    assert starting._child is not None
    starting._child.returncode = None
    start(starting)
    assert len(Child.started) == 1
    starting._child.returncode = 0
    start(starting)
    assert len(Child.started) == 2
    assert Child.started[0][1:4] == ["-m", "qedit.pipeline", "preview"]


def test_a_failure_is_said_once(decoding: tuple[Decoding, Quiet]) -> None:
    starting, quiet = decoding
    for _ in range(3):
        start(starting)
        assert starting._child is not None
        starting._child.returncode = 1
    assert len(quiet.warned) == 1
    assert "`qedit preview`" in quiet.warned[0]


def test_without_room_nothing_is_started(
    decoding: tuple[Decoding, Quiet], monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, quiet = decoding
    monkeypatch.setattr(decoding_module, "available_bytes", lambda: 1 << 30)
    start(starting)
    start(starting)
    assert Child.started == []
    assert len(quiet.warned) == 1
    assert "no memory" in quiet.warned[0]
