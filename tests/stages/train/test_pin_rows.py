"""A run pins the rows that it trains on, whoever made them: gc of another run keeps them."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import pytest
from small_run import cache_rows, enter_copy, make_run, said, with_files

from qedit.cache.errors import Locked, QeditError
from qedit.stages.stores import pins
from qedit.stages.train import pin_rows

FORMER = ("--set", "data.edited.caption_strategy=filename")
TRAINED = (*FORMER, "--set", "output_dir=out2", "--set")
ONE, TWO = (*TRAINED, "max_train_steps=1"), (*TRAINED, "max_train_steps=2")


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two kinds of captions, all made by one run, which wants the latter by now."""
    folder = make_run(tmp_path_factory.mktemp("cached"), flavour="edit-v2")
    with chdir(folder):
        for options in (FORMER, ()):
            cache_rows(*options)
    return folder


@pytest.fixture
def here(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where it was made, as far as the records can tell."""
    folder = enter_copy(cached, tmp_path / "here", monkeypatch)
    cache_rows()
    return folder


def _records() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("caches").glob("*/*/runs/*.json")}


def test_rows_that_a_run_trained_on_are_kept_for_its_next_step(here: Path) -> None:
    """It has neither paired nor filled any store: another run had made all it wants."""
    assert said(with_files("gc", "--json"))["rows"] == 4
    with_files("train", *ONE)
    shown = said(with_files("gc", "--yes", "--json"))
    assert (shown["rows"], shown["files"]) == (0, [])
    assert said(with_files("train", *TWO, "--json"))["computed"] == 1


def test_a_dry_run_and_a_refused_one_leave_no_record(here: Path) -> None:
    before = _records()
    with_files("train", *ONE, "--dry-run")
    with_files("train", *ONE, "--set", "train_batch_size=0", expect=2)
    assert _records() == before
    with_files("train", *ONE)
    recorded = _records()
    assert len(recorded) == len(before) + 4  # latents of targets and of references, prefixes, tails
    # the folder is a run's whose rows stay recorded: this one may not have it
    with_files("train", "--set", "output_dir=out2", "--set", "max_train_steps=1", expect=3)
    assert _records() == recorded


def test_what_gc_takes_right_before_the_record_is_missed_before_the_first_step(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = pin_rows.pin_existing

    def too_late(*args: object, **kwargs: object) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(pin_rows, "pin_existing", keep)
            assert said(with_files("gc", "--yes", "--json"))["rows"] == 4
        return keep(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pin_rows, "pin_existing", too_late)
    error = with_files("train", *ONE, expect=4).stderr
    assert "There is no pairs table of dataset edited" in error
    assert not list(Path("out2").glob("*"))


def test_caches_that_may_not_be_written_are_trained_on_and_it_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise QeditError("caches may not be written (Read-only).", "") from PermissionError(30)

    with monkeypatch.context() as patch:
        patch.setattr(pins, "writer_lock", refused)
        said_of_it = with_files("train", *ONE)
    assert "may not be written" in said_of_it.stderr
    assert "nothing there records that this run trains on these caches" in said_of_it.stderr


def test_training_does_not_begin_while_somebody_removes_rows(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_work(*args: object, **kwargs: object) -> None:
        raise Locked("caches is being written by another.", "Wait for it.")

    monkeypatch.setattr(pins, "writer_lock", at_work)
    assert "written by another" in with_files("train", *ONE, expect=6).stderr
    assert not Path("out/metrics.jsonl").exists()


def test_a_run_that_is_recorded_takes_no_lock(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("train", *ONE)
    monkeypatch.setattr(pins, "writer_lock", pytest.fail)
    assert said(with_files("train", *TWO, "--json"))["computed"] == 1
