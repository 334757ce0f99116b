"""Resume: a run that was killed and one that was not end in the same bits."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from crashing import Death, Hook
from filled_run import fill, made_configuration, made_samples_with_edits
from paths import SUPPORT
from quiet import Quiet
from samples import made_picture, made_sample
from training import LORA, bits_of, ending

from qedit.cache.errors import Damaged
from qedit.cache.files import atomic
from qedit.cache.files.atomic import remove
from qedit.config.loading import Configuration
from qedit.stages.train import loop
from qedit.stages.train.state.checkpoint import Trained, checkpoint_to_resume, checkpoints, step_of
from qedit.stages.train.state.ema import Ema
from qedit.stages.train.state.optimizers import make_optimizer

ALONE = made_samples_with_edits(6, sizes=[(64, 64), (64, 96)])
# a target that takes one of two references at a time
TURNS = [
    replace(
        made_sample("turns.png", captions=("keep it",)),
        references=(made_picture(name, dataset="edits-before-0", size=(64, 64), vl_size=(28, 28)),),
        group="turns.png",
    )
    for name in ("one.png", "two.png")
]
SAMPLES = [*ALONE, *TURNS]
# Everything that is drawn or remembered is on.
EVERYTHING: dict[str, Any] = {
    "max_train_steps": 9,
    "checkpoint_step_interval": 2,
    "train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "caption_dropout_probability": 0.3,
    "lora_dropout": 0.2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "optimizer_config": {"weight_decay": 0.1},
    "scheduled_sampling_max_step_offset": 2,
    "scheduled_sampling_probability": 0.5,
    "scheduled_sampling_sampler": "euler",
}
KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from quiet import Quiet
from qedit.config.loading import load
from qedit.stages.train import loop

class Killing(Quiet):
    shown = 0
    def note(self, **values):
        self.shown += 1
        if self.shown == {steps}:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
folder = Path({folder!r})
loop.run(load(folder / "config.json", folder / "data.json"), Killing(), device="cpu")
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """The bits of a sum depend on the number of threads; the killed process uses one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    fill(made_configuration(folder, **EVERYTHING), SAMPLES)
    return folder


@pytest.fixture
def made(tmp_path: Path, shared: Path) -> Callable[..., Configuration]:
    """The run of these tests, in an output folder of the test's own."""

    def make(*, output: str = "output", **settings: Any) -> Configuration:
        return made_configuration(
            shared, output_dir=str(tmp_path / output), **{**EVERYTHING, **settings}
        )

    return make


@pytest.fixture(scope="module")
def uninterrupted(shared: Path) -> dict[str, Any]:
    """What the run ends with when nothing happens to it."""
    configuration = made_configuration(
        shared, output_dir=str(shared / "uninterrupted" / "output"), **EVERYTHING
    )
    loop.run(configuration, Quiet(), device="cpu")
    return ended(configuration)


@pytest.fixture
def finished(made: Any, shared: Path, uninterrupted: dict[str, Any]) -> Configuration:
    """A copy of the run that nothing happened to."""
    configuration: Configuration = made()
    shutil.copytree(shared / "uninterrupted" / "output", configuration.settings.output_dir)
    return configuration


def ended(configuration: Configuration, *, last: int = 9) -> dict[str, Any]:
    """The final files' bytes and the log without its clock."""
    state = (f"checkpoint-{last}/{kind}.safetensors" for kind in ("weights", "optimizer", "ema"))
    return ending(configuration, LORA, f"ema/{LORA}", *state)


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.full), 5])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    made: Any, shared: Path, uninterrupted: dict[str, Any], steps: int
) -> None:
    """Killed after its first step, before any checkpoint, and between two checkpoints."""
    configuration = made()
    script = KILLED.format(tests=str(SUPPORT), folder=str(shared), steps=steps)
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    outcome = loop.run(configuration, Quiet(), device="cpu")
    assert outcome.kept == (steps - 1) // 2 * 2
    assert ended(configuration) == uninterrupted


def dies(configuration: Configuration, death: Death) -> bool:
    """Train in a child that dies this death; whether it came to that."""
    where = configuration.settings.output_dir
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; the child uses none of the parent's
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        hook = Hook(where, death)
        if death.way == "half":
            atomic._open_new = hook.opener(atomic._open_new)
        sys.addaudithook(hook)
        try:
            loop.run(configuration, Quiet(), device="cpu")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


# Nothing of a change is made, or half of a file's bytes.
WAYS = ("before", "half")
# A start that goes on from one of the checkpoints changes the disk at least so often.
FURTHEST = 41


@pytest.mark.parametrize(
    "deaths", [pytest.param(4), pytest.param(30, marks=pytest.mark.exhaustive)], ids=str
)
def test_a_run_killed_in_its_writes_again_and_again_ends_the_same(
    made: Any, uninterrupted: dict[str, Any], deaths: int
) -> None:
    """Each start dies at another change of the disk; the last one is left alone."""
    configuration = made()
    ways = itertools.cycle(WAYS)
    died = [
        dies(configuration, Death(1 + 29 * number % FURTHEST, next(ways)))
        for number in range(1, deaths + 1)
    ]
    assert sum(died) >= deaths - 1
    loop.run(configuration, Quiet(), device="cpu")
    assert ended(configuration) == uninterrupted
    left = [
        path for path in configuration.settings.output_dir.rglob("*") if ".partial" in path.name
    ]
    assert left == []


@pytest.mark.exhaustive
def test_a_run_killed_at_any_change_of_the_disk_ends_the_same(
    made: Any, uninterrupted: dict[str, Any]
) -> None:
    for way in WAYS:
        for at in itertools.count(1):
            configuration = made(output=f"{way}-{at}/output")  # the LoRA's title is its name
            if not dies(configuration, Death(at, way)):
                break
            loop.run(configuration, Quiet(), device="cpu")
            assert ended(configuration) == uninterrupted, (way, at)
            remove(configuration.settings.output_dir)
        assert at > FURTHEST


def test_a_line_that_was_cut_short_is_dropped_and_made_again(
    made: Any, uninterrupted: dict[str, Any]
) -> None:
    configuration = made(max_train_steps=4, lr_scheduler="constant", lr_warmup_steps=0)
    loop.run(configuration, Quiet(), device="cpu")
    log = configuration.settings.output_dir / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    # two steps beyond the checkpoint, the last of them torn
    log.write_text("".join([*lines, '{"step": 5, "loss": 1.0}\n', '{"step": 6, "lo']))
    again = made(max_train_steps=6, lr_scheduler="constant", lr_warmup_steps=0)
    loop.run(again, Quiet(), device="cpu")
    kept = log.read_text().splitlines(keepends=True)
    assert kept[:4] == lines
    assert [json.loads(line)["step"] for line in kept] == [1, 2, 3, 4, 5, 6]


# -- Ctrl-C in a terminal --------------------------------------------------------------------


def begun(
    folder: Path, where: Path, *, lines: int, output: int = subprocess.PIPE, ignored: int = 0
) -> subprocess.Popen[str]:
    """`qedit train` in a process of its own, when it has made so many steps.

    Args:
        output: where it writes; a terminal becomes the one that controls it.
        ignored: a signal that it ignores from the start.
    """

    def prepare() -> None:
        if output != subprocess.PIPE:
            os.setsid()
            fcntl.ioctl(output, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)

    command = [sys.executable, "-m", "qedit.pipeline", "train", "--device", "cpu"]
    command += ["--config", str(folder / "config.json"), "--data", str(folder / "data.json")]
    settings = {
        "output_dir": where,
        "max_train_steps": 100_000,
        "checkpoint_step_interval": 100_000,
    }
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    child = subprocess.Popen(command, stdout=output, stderr=output, text=True, preexec_fn=prepare)
    log, give_up = where / "metrics.jsonl", time.monotonic() + 240
    while not (log.is_file() and len(log.read_text().splitlines()) >= lines):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return child


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.full),
    ],
)
def test_one_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    shared: Path, tmp_path: Path, number: int
) -> None:
    child = begun(shared, tmp_path / "once", lines=2)
    child.send_signal(number)
    said, errors = child.communicate(timeout=120)
    assert child.returncode == 128 + number
    assert re.search(r"^Finishing this step and writing a checkpoint \(about \d+ s\); ", said, re.M)
    (checkpoint,) = checkpoints(tmp_path / "once")
    last = step_of(checkpoint)
    assert f"Stopped after step {last}. Run `qedit train --config " in said
    assert "the same command goes on" in errors
    lines = (tmp_path / "once/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, last + 1))


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of its own")
def test_a_terminal_that_closes_leaves_a_checkpoint(shared: Path, tmp_path: Path) -> None:
    """Both ends of the output are gone then: to write to them is an error."""
    where = tmp_path / "closed"
    terminal, other_end = os.openpty()
    child = begun(shared, where, lines=2, output=other_end)
    os.close(other_end)
    os.close(terminal)
    assert child.wait(timeout=120) == 129
    (checkpoint,) = checkpoints(where)
    lines = (where / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == step_of(checkpoint)


@pytest.mark.full
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(
    shared: Path, tmp_path: Path
) -> None:
    child = begun(shared, tmp_path / "nohup", lines=2, ignored=signal.SIGHUP)
    child.send_signal(signal.SIGHUP)
    log = tmp_path / "nohup" / "metrics.jsonl"
    lines, give_up = len(log.read_text().splitlines()), time.monotonic() + 60
    while len(log.read_text().splitlines()) < lines + 5:
        assert child.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=120)
    assert child.returncode == 143


@pytest.mark.full
def test_two_ctrl_c_leave_at_once(shared: Path, tmp_path: Path) -> None:
    child = begun(shared, tmp_path / "twice", lines=2)
    # a second one before the step is over: more often than a step is long
    give_up = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < give_up:
        child.send_signal(signal.SIGINT)
        time.sleep(0.001)
    said, _ = child.communicate(timeout=10)
    assert child.returncode in (130, -signal.SIGINT)
    assert "Stopped after step" not in said
    assert checkpoints(tmp_path / "twice") == []


def test_a_run_in_pieces_is_the_run_in_one_go(made: Any, uninterrupted: dict[str, Any]) -> None:
    """Stopped after one step, and again and again; the schedule's end is known from the start."""
    pieces = made(checkpoint_step_interval=1)

    class Enough(Exception):
        pass

    class Stopping(Quiet):
        def __init__(self, steps: int) -> None:
            super().__init__()
            self.steps = steps

        def note(self, **values: str) -> None:
            if self.moved == self.steps:
                raise Enough

    for steps, newest in ((2, 1), (4, 4), (5, 8)):
        with pytest.raises(Enough):
            loop.run(pieces, Stopping(steps), device="cpu")
        assert checkpoints(pieces.settings.output_dir)[-1].name == f"checkpoint-{newest}"
    assert loop.run(pieces, Quiet(), device="cpu").computed == 1
    assert ended(pieces) == uninterrupted


def test_more_steps_than_first_asked_for_are_the_longer_run(made: Any) -> None:
    plain = {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    longer = made(output="longer/output", max_train_steps=5, **plain)
    loop.run(longer, Quiet(), device="cpu")
    loop.run(made(max_train_steps=3, **plain), Quiet(), device="cpu")
    grown = made(max_train_steps=5, **plain)
    assert loop.run(grown, Quiet(), device="cpu").kept == 3
    assert ended(grown, last=5) == ended(longer, last=5)


def test_moving_the_end_of_a_decaying_schedule_is_told(made: Any) -> None:
    loop.run(made(max_train_steps=1), Quiet(), device="cpu")
    told = Quiet()
    loop.run(made(max_train_steps=2), told, device="cpu")
    assert "step 2 instead of 1" in told.warned[0]
    again = Quiet()
    constant = {"lr_scheduler": "constant", "output": "constant"}
    loop.run(made(max_train_steps=1, **constant), again, device="cpu")
    loop.run(made(max_train_steps=2, **constant), again, device="cpu")
    assert again.warned == []


def test_an_older_checkpoint_can_be_named(
    made: Any, finished: Configuration, uninterrupted: dict[str, Any]
) -> None:
    outcome = loop.run(made(resume_from_checkpoint="checkpoint-4"), Quiet(), device="cpu")
    assert (outcome.kept, outcome.computed) == (4, 5)
    assert ended(finished) == uninterrupted


def test_a_damaged_newest_checkpoint_may_be_removed(
    finished: Configuration, uninterrupted: dict[str, Any]
) -> None:
    newest = finished.settings.output_dir / "checkpoint-9"
    (newest / "state.json").write_text("{")
    with pytest.raises(Damaged, match="checkpoint-9") as refused:
        loop.run(finished, Quiet(), device="cpu")
    assert str(newest) in refused.value.do
    remove(newest)
    assert loop.run(finished, Quiet(), device="cpu").kept == 8
    assert ended(finished) == uninterrupted


# -- checkpoints alone ---------------------------------------------------------------------


def trained(seed: int) -> Trained:
    torch.manual_seed(seed)
    weights = {name: torch.nn.Parameter(torch.randn(3, 2)) for name in ("a", "b")}
    optimizer = make_optimizer(weights, learning_rate=0.1)
    for _ in range(3):
        sum(weight.square().sum() for weight in weights.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Trained(weights, optimizer, Ema(weights, decay=0.9))


def test_a_checkpoint_holds_no_pickle_and_gives_everything_back(tmp_path: Path) -> None:
    from qedit.stages.train.state.checkpoint import save_checkpoint

    one, other = trained(1), trained(2)
    folder = save_checkpoint(tmp_path, one, step=3, of_steps=9, run={"a": 1}, limit=2)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert bits_of(one) != bits_of(other)
    other.restore(folder)
    assert bits_of(one) == bits_of(other)
    for state in (one, other):
        state.weights["a"].square().sum().backward()
        state.optimizer.step()
    assert bits_of(one) == bits_of(other)


def test_the_oldest_goes_only_when_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qedit.stages.train.state import checkpoint

    def save(step: int) -> None:
        checkpoint.save_checkpoint(tmp_path, trained(1), step=step, of_steps=9, run={}, limit=2)

    def names() -> list[str]:
        return [path.name for path in checkpoints(tmp_path)]

    save(5)
    save(10)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", lambda path, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(15)
    assert names() == ["checkpoint-5", "checkpoint-10"]
    save(15)
    assert names() == ["checkpoint-10", "checkpoint-15"]
    newest = checkpoint_to_resume(tmp_path, "latest")
    assert newest is not None
    assert newest.name == "checkpoint-15"
