from __future__ import annotations

from pathlib import Path

import pytest

from qedit.stages.models.tiny import make_tiny


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "v2", "edit-v2")


def test_it_is_there(v2: Path) -> None:
    assert (v2 / "model_index.json").is_file()
