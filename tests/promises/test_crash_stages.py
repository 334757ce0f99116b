"""cache-vae and cache-embeds, killed whenever they change the disk: the rerun does the rest."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from cached_rows import KINDS, rows_in
from crash_server import CrashServer, words_in
from crashing import deaths_in
from small_run import make_run

from qedit.cache.files.atomic import LEFTOVER
from qedit.pipeline.upkeep.caches import stores_in


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory, server: CrashServer) -> Path:
    """Four pairs of three sizes, nothing encoded yet."""
    folder = make_run(tmp_path_factory.mktemp("paired"), flavour="edit-v2")
    _done(server, "pair", folder)
    return folder


def _done(server: CrashServer, command: str, folder: Path) -> tuple[dict[str, int], list[str]]:
    code, said, changes = server.run(words_in(folder, command), folder)
    assert code == 0, said
    return json.loads(said.splitlines()[-1]), changes


@pytest.mark.parametrize("stage", KINDS)
@pytest.mark.parametrize(
    "deaths",
    [
        pytest.param(2, marks=pytest.mark.full),
        pytest.param(10_000, marks=pytest.mark.exhaustive),
    ],
)
def test_a_stage_that_is_killed_goes_on_where_it_was(
    paired: Path, tmp_path: Path, server: CrashServer, stage: str, deaths: int
) -> None:
    whole = Path(shutil.copytree(paired, tmp_path / "whole"))
    first, changes = _done(server, stage, whole)
    expected = rows_in(whole, stage)
    assert first["computed"] == first["wanted"] == len(expected) > 7
    every = list(deaths_in(changes))
    assert len(every) > 40
    step = max(1, len(every) // deaths)
    for death in every[step // 2 :: step]:
        folder = Path(shutil.copytree(paired, tmp_path / f"{death.at}-{death.way}"))
        code, said, _ = server.run(words_in(folder, stage), folder, death=death)
        assert code == -signal.SIGKILL, said
        kept = rows_in(folder, stage)
        again, _ = _done(server, stage, folder)
        assert again["computed"] == len(expected) - len(kept)
        rows = rows_in(folder, stage)
        assert rows.keys() == expected.keys()
        assert all(np.array_equal(rows[key], row) for key, row in expected.items())
        _assert_clean(folder, stage)
        shutil.rmtree(folder)


def _assert_clean(folder: Path, stage: str) -> None:
    for kind in KINDS[stage]:
        (store,) = stores_in(folder / "caches" / kind)
        assert store.verify() == []
        left = [path.name for path in store.path.rglob("*") if path.name.endswith(LEFTOVER)]
        assert left == []
        assert all((part / "manifest.json").exists() for part in store.part_paths())
