"""Several processes train one run: the same losses, one output, one end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filled_run import made_samples_with_edits
from held_out_run import fill_held_out, made_held_out
from paths import SUPPORT
from training import LORA, checkpoint_names, ending, metrics, train

from qedit.cache.files.atomic import write_json
from qedit.config.loading import Configuration
from qedit.stages.run_output.run_file import read_run

# each launch starts two processes that import torch
pytestmark = pytest.mark.full

SAMPLES = made_samples_with_edits(7, sizes=[(64, 64), (64, 96)])
RUN: dict[str, Any] = {
    "max_train_steps": 6,
    "checkpoint_step_interval": 3,
    "eval_steps_interval": 3,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "caption_dropout_probability": 0.3,
    "num_eval_images": 3,
}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
ACCELERATE = (
    # what it calls multi_gpu is several processes without MPI; they are told to use the CPU
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"),
)
FILES = (LORA, f"ema/{LORA}", f"best/{LORA}", "checkpoint-6/optimizer.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    fill_held_out(made_held_out(folder, **RUN), SAMPLES)
    return folder


@pytest.fixture(scope="module")
def alone(shared: Path) -> Configuration:
    configuration = made_held_out(shared, output_dir=str(shared / "alone"), **RUN)
    train(configuration)
    return configuration


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launched(
    launcher: tuple[str, ...],
    configuration: Configuration,
    folder: Path,
    *,
    program: tuple[str, ...] = ("-m", "qedit.pipeline"),
) -> subprocess.Popen[str]:
    """Start `qedit train` under a launcher, in a process group of its own."""
    settings = configuration.settings.model_dump(mode="json", exclude_defaults=True)
    write_json(
        folder / "launched.json", settings | {"output_dir": str(configuration.settings.output_dir)}
    )
    command = [sys.executable, *launcher, str(free_port()), *program, "train"]
    command += ["--config", str(folder / "launched.json"), "--data", str(folder / "data.json")]
    return subprocess.Popen(
        [*command, "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def together(shared: Path) -> tuple[Configuration, str]:
    """Two processes that nothing happens to, and what was said."""
    configuration = made_held_out(shared, output_dir=str(shared / "together"), **RUN)
    child = launched(TORCHRUN, configuration, shared)
    said, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return configuration, said


def test_two_processes_train_as_one(
    alone: Configuration, together: tuple[Configuration, str]
) -> None:
    configuration, said = together
    # one voice
    assert said.count("6 steps made") == 1
    assert said.count("Training on cpu, with 2 processes.") == 1
    one, two = metrics(alone), metrics(configuration)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for expected, line in zip(one, two, strict=True):
        if "held_out" in line:
            assert line["held_out"]["loss"] == pytest.approx(expected["held_out"]["loss"], rel=1e-5)
            continue
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert (line["sigma"], line["samples"]) == (expected["sigma"], expected["samples"])
        assert line["loss_by_sigma"] == pytest.approx(expected["loss_by_sigma"], rel=1e-5)
    # the same weights, measured with the samples shared out, are the same number
    assert two[0] == one[0]
    assert checkpoint_names(configuration) == checkpoint_names(alone)
    assert (configuration.settings.output_dir / "best" / LORA).is_file()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc (Linux)")
@pytest.mark.parametrize(
    ("launcher", "victim"),
    [
        pytest.param(TORCHRUN, 0, marks=pytest.mark.exhaustive, id="torchrun"),
        pytest.param(ACCELERATE, 1, id="accelerate"),
    ],
)
def test_a_killed_process_ends_the_others_with_a_message_and_the_run_goes_on_to_the_bit(
    shared: Path,
    together: tuple[Configuration, str],
    tmp_path: Path,
    launcher: tuple[str, ...],
    victim: int,
) -> None:
    # of the same name: files say it
    configuration = made_held_out(shared, output_dir=str(tmp_path / "together"), **RUN)
    script = str(SUPPORT / "killed_rank.py")
    child = launched(launcher, configuration, shared, program=(script, "dies", str(victim), "5"))
    _, errors = child.communicate(timeout=300)
    assert child.returncode != 0
    assert "exitcode  : -9" in errors  # what the launcher says of the one that was killed
    if victim:
        assert f"Another process of this run has ended, so process {1 - victim} of 2" in errors
    assert not list(processes_of(child.pid))
    assert checkpoint_names(configuration) == ["checkpoint-3"]
    if victim:
        again = launched(launcher, configuration, shared)
        said, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors
        assert said.count("Going on from checkpoint-3.") == 1
        assert ending(configuration, *FILES) == ending(together[0], *FILES)


@pytest.mark.exhaustive
def test_a_process_that_nobody_watches_ends_by_itself_when_the_other_is_killed(
    shared: Path, tmp_path: Path
) -> None:
    """As on two machines, where no launcher sees both: it must not wait for half an hour."""
    configuration = made_held_out(shared, output_dir=str(tmp_path / "killed"), **RUN)
    settings = configuration.settings.model_dump(mode="json", exclude_defaults=True)
    write_json(
        shared / "apart.json", settings | {"output_dir": str(configuration.settings.output_dir)}
    )
    words = ["train", "--config", str(shared / "apart.json"), "--data", str(shared / "data.json")]
    script = str(SUPPORT / "killed_rank.py")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    first, second = (
        subprocess.Popen(
            [sys.executable, script, "dies", "1", "5", *words, "--device", "cpu"],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    )
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL
    began = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert first.returncode == 1
    assert "Another process of this run has ended, so process 0 of 2 ends too." in errors
    assert "goes on from the last checkpoint" in errors


def processes_of(launcher: int) -> Iterator[tuple[int, int]]:
    """Process id and rank of what a launcher has started, from /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())[1])  # type: ignore[index]
            environment = (folder / "environ").read_bytes()
        except (OSError, TypeError):
            continue
        rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + environment)
        if parent == launcher and rank:
            yield int(folder.name), int(rank[1])


def wait_for(path: Path, lines: int, child: subprocess.Popen[str]) -> None:
    """Until the log has so many lines."""
    give_up = time.monotonic() + 240
    while not (path.is_file() and len(path.read_text().splitlines()) >= lines):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.killpg, signal.SIGINT, id="the launcher and its processes, as a terminal"),
        pytest.param(os.kill, signal.SIGTERM, id="the launcher alone, which hands it on"),
    ],
)
def test_one_signal_stops_all_after_the_same_step(
    shared: Path, tmp_path: Path, send: Callable[[int, int], None], number: int
) -> None:
    settings = {**RUN, "max_train_steps": 100_000, "checkpoint_step_interval": 100_000}
    configuration = made_held_out(shared, output_dir=str(tmp_path / "stopped"), **settings)
    child = launched(TORCHRUN, configuration, shared)
    wait_for(configuration.settings.output_dir / "metrics.jsonl", 5, child)
    send(child.pid, number)
    said, errors = child.communicate(timeout=90)
    (name,) = checkpoint_names(configuration)
    last = [line["step"] for line in metrics(configuration)][-1]
    assert name == f"checkpoint-{last}"
    assert said.count(f"Stopped after step {last}. Run `qedit train") == 1, errors
    assert not (configuration.settings.output_dir / "writer.json").exists()


def test_all_leave_soon_where_one_hangs(shared: Path, tmp_path: Path) -> None:
    """They cannot agree on a step to stop after: none waits for the others for ever."""
    settings = {**RUN, "max_train_steps": 100_000, "checkpoint_step_interval": 3}
    configuration = made_held_out(shared, output_dir=str(tmp_path / "hung"), **settings)
    program = (str(SUPPORT / "killed_rank.py"), "hangs", "1", "5")
    child = launched(TORCHRUN, configuration, shared, program=program)
    wait_for(configuration.settings.output_dir / "metrics.jsonl", 6, child)  # of 4 steps
    time.sleep(3.0)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    # torchrun itself kills what is left after 30 s
    assert time.monotonic() - began < 28
    assert "The other processes have not answered for 1" in errors
    assert not list(processes_of(child.pid))
    assert checkpoint_names(configuration) == ["checkpoint-3"]


def test_only_training_is_shared(shared: Path) -> None:
    from quiet import Quiet

    from qedit.cache.errors import WrongUse
    from qedit.pipeline.runner import run_stages

    configuration = made_held_out(shared, **RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(WrongUse, match="run by one"):
            run_stages(("pair", "train"), configuration, Quiet())


def test_two_processes_go_on_with_changed_pairs_as_one_does(tmp_path: Path) -> None:
    """Their first process writes which steps had which, and all read it."""
    grown, settings = made_samples_with_edits(9, sizes=[(64, 64), (64, 96)]), RUN
    outputs = [str(tmp_path / name) for name in ("one", "two")]

    def made(output: str, **more: Any) -> Configuration:
        return made_held_out(tmp_path, output_dir=output, **{**settings, **more})

    fill_held_out(made(outputs[0]), SAMPLES)
    for output in outputs:
        train(made(output, max_train_steps=3))
    fill_held_out(made(outputs[0]), grown)
    train(made(outputs[0], on_changed_data="continue"))
    child = launched(TORCHRUN, made(outputs[1]), tmp_path)
    _, errors = child.communicate(timeout=300)
    assert child.returncode, "which is torchrun's own"
    assert errors.count("dataset edits: 2 pairs added") == 1
    child = launched(TORCHRUN, made(outputs[1], on_changed_data="continue"), tmp_path)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    one, two = (made(output) for output in outputs)
    assert read_run(one.settings.output_dir) == read_run(two.settings.output_dir)
    expected, found = ([line for line in metrics(run) if "loss" in line] for run in (one, two))
    assert [line["loss"] for line in found] == pytest.approx(
        [line["loss"] for line in expected], rel=1e-5
    )
