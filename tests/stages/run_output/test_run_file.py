"""run.json has one reader: a damaged one is refused, and can be written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import train

from qedit.cache.errors import Damaged
from qedit.stages.run_output.run_file import read_run, write_run


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    write_run(tmp_path, {"settings": {"seed": 1}})
    assert read_run(tmp_path) == {"settings": {"seed": 1}}


@pytest.mark.parametrize("text", ['{"settings"', "[1]", "\x00\x00"])
def test_a_damaged_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Damaged, match=r"run\.json cannot be read: .*\nDelete that file"):
        read_run(tmp_path)


def test_a_damaged_one_that_is_deleted_is_written_again(made: Any) -> None:
    configuration = made(max_train_steps=1)
    train(configuration)
    path = configuration.settings.output_dir / "run.json"
    before = path.read_bytes()
    path.write_text('{"settings"')
    with pytest.raises(Damaged):
        train(configuration)
    path.unlink()
    assert train(made(max_train_steps=2)).kept == 1
    assert path.read_bytes() == before
