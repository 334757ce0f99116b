"""Messages about rows that other processes are making: who makes them, and what to type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from quiet import Quiet
from small_run import loaded, make_run, said, with_files

from qedit.cache.files.claims import CLAIMS
from qedit.cache.files.lock import Holder, new_holder
from qedit.pipeline.terminal import output
from qedit.pipeline.terminal.output import TerminalProgress
from qedit.stages.cache_vae import stage as cache_vae
from qedit.stages.cache_vae.wanted_pictures import find_pictures
from qedit.stages.encoding import progress_messages
from qedit.stages.encoding.progress_messages import SAY_AGAIN_SECONDS, WaitingNotice
from qedit.stages.encoding.wanted_rows import in_shard
from qedit.stages.encoding.work_split import shard_named
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.stores.row_kinds import RowKind
from qedit.stages.stores.run import Run
from qedit.stages.stores.run_stores import open_stores


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as `WaitingNotice` sees it."""
    now = [1000.0]
    monkeypatch.setattr(progress_messages.time, "monotonic", lambda: now[0])
    return now


def _elsewhere(**changes: object) -> Holder:
    holder = new_holder("qedit cache-vae")
    return replace(holder, owner=replace(holder.owner, host="elsewhere", pid=12), **changes)


def test_who_cannot_be_asked_is_named_at_once_and_every_minute(clock: list[float]) -> None:
    told = Quiet()
    waiting, holder = WaitingNotice(told), _elsewhere()
    for _ in range(5):
        waiting(holder)
    (line,) = told.warned
    assert line.startswith(
        f"All that is left is claimed by process 12 on elsewhere ({holder.doing}"
    )
    assert f"since {holder.since}" in line
    assert "`qedit unlock --yes`" in line
    clock[0] += SAY_AGAIN_SECONDS - 1
    waiting(holder)
    assert len(told.warned) == 1
    clock[0] += 1
    waiting(holder)
    assert "it has finished nothing for 1 min" in told.warned[1]
    clock[0] += 9 * SAY_AGAIN_SECONDS
    waiting(holder)
    assert "it has finished nothing for 10 min" in told.warned[2]


def test_who_goes_on_to_other_work_is_alive(clock: list[float]) -> None:
    told = Quiet()
    waiting = WaitingNotice(told)
    waiting(_elsewhere(turn=1))
    clock[0] += SAY_AGAIN_SECONDS
    waiting(_elsewhere(turn=2))
    assert len(told.warned) == 2
    assert not any("finished nothing" in line for line in told.warned)


def test_a_process_that_is_seen_to_run_is_waited_for_in_peace(clock: list[float]) -> None:
    told = Quiet()
    waiting, holder = WaitingNotice(told), new_holder("qedit cache-vae")
    waiting(holder)
    assert told.warned == []
    clock[0] += SAY_AGAIN_SECONDS
    waiting(holder)
    (line,) = told.warned
    assert "It is running" in line
    assert "unlock" not in line


def test_a_bar_that_stands_still_shows_for_whom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(output, "DRAWN_EVERY_SECONDS", 0.0)
    progress = TerminalProgress()
    with progress.bar(3, "cache-vae"):
        capsys.readouterr()
        progress.note(waiting_for="process 12 on elsewhere")
        assert "waiting_for=process 12 on elsewhere" in capsys.readouterr().err


class Listener(Quiet):
    """One that does something at the first warning."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def warn(self, line: str) -> None:
        super().warn(line)
        self._act()

    @contextmanager
    def bar(self, *args: object, **options: object) -> Iterator[Callable[[int], None]]:
        yield lambda count: None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pairs of which nothing is cached yet."""
    monkeypatch.chdir(make_run(tmp_path, flavour="edit-v2"))
    with_files("pair")
    return tmp_path


def _keys(number: str) -> set[str]:
    """The latents of one share."""
    configuration = loaded()
    wanted = find_pictures(Run(configuration))
    return set(in_shard(wanted.work[RowKind.LATENTS], shard_named(number)))


def _claim_elsewhere(folder: Path, keys: set[str]) -> list[Path]:
    """Another machine is at work on these keys, or was when it died."""
    configuration = loaded()
    stores = open_stores(configuration, open_checkpoint(configuration.settings))
    said_there = {**asdict(_elsewhere()), "keys": sorted(keys)}
    made = []
    for store in stores.latents.stores():
        path = store.path / CLAIMS / "elsewhere~0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said_there))
        made.append(path)
    return made


def test_a_share_does_not_wait_for_another_machines(folder: Path) -> None:
    mine, theirs = _keys("1/2"), _keys("2/2")
    assert mine
    assert theirs
    claims = _claim_elsewhere(folder, theirs)
    assert said(with_files("cache-vae", "--shard", "1/2", "--json"))["computed"] == len(mine)
    assert all(path.exists() for path in claims)


def test_a_share_that_a_dead_machine_has_claimed_goes_on_after_unlock(folder: Path) -> None:
    mine = _keys("1/2")
    claims = _claim_elsewhere(folder, mine)
    told = Listener(lambda: with_files("unlock", "--yes"))
    configuration = loaded()
    made = cache_vae.run(Run(configuration), told, shard="1/2")
    assert made.computed == len(mine)
    (line,) = told.warned
    assert "process 12 on elsewhere" in line
    assert not any(path.exists() for path in claims)
