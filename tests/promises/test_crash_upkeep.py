"""`verify --drop` and `gc`, killed whenever they change the disk: nothing wanted is lost."""

from __future__ import annotations

import json
import shutil
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from cached_rows import KINDS, Rows, rows_in
from crash_server import CrashServer, words_in
from crashing import deaths_in
from damage import flip
from small_run import draw, make_run

from qedit.cache.files.atomic import LEFTOVER
from qedit.pipeline.upkeep.caches import stores_in

STAGES = ("pair", "cache-vae", "cache-embeds")
DEATHS = pytest.mark.parametrize(
    "deaths",
    [
        pytest.param(1, marks=pytest.mark.full),
        pytest.param(10_000, marks=pytest.mark.exhaustive),
    ],
)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, server: CrashServer) -> Path:
    """Four pairs, encoded in two parts of each kind; rows of two former ones are orphans."""
    folder = make_run(tmp_path_factory.mktemp("cached"), flavour="edit-v2")
    for change in (False, True):
        if change:
            draw(folder / "edited" / "p1.png", (128, 72), seed=999)
            draw(folder / "reference-a" / "p0.png", (96, 96), seed=998)
            (folder / "edited" / "p2.txt").write_text("another caption")
        for stage in STAGES:
            assert _run(server, folder, stage)[0] == 0
    return folder


def _run(server: CrashServer, folder: Path, *words: str) -> tuple[int, str, list[str]]:
    return server.run(words_in(folder, *words), folder)


def _holds(found: Rows, wanted: Rows) -> bool:
    return all(np.array_equal(found[key], row) for key, row in wanted.items())


def _computed(server: CrashServer, folder: Path) -> int:
    found = 0
    for stage in STAGES[1:]:
        code, said, _ = _run(server, folder, stage)
        assert code == 0, said
        found += json.loads(said.splitlines()[-1])["computed"]
    return found


def _assert_clean(server: CrashServer, folder: Path) -> None:
    code, said, _ = _run(server, folder, "verify")
    assert code == 0, said
    for kind in chain(*KINDS.values()):
        (store,) = stores_in(folder / "caches" / kind)
        assert [one for one in store.path.rglob("*") if one.name.endswith(LEFTOVER)] == []
        assert all((part / "manifest.json").exists() for part in store.part_paths())


@DEATHS
@pytest.mark.parametrize("options", [("--yes",), ("--compact", "--yes")], ids=["yes", "compact"])
def test_gc_that_is_killed_keeps_what_is_wanted(
    cached: Path, tmp_path: Path, server: CrashServer, options: tuple[str, ...], deaths: int
) -> None:
    whole = Path(shutil.copytree(cached, tmp_path / "whole"))
    code, said, changes = _run(server, whole, "gc", *options)
    assert code == 0, said
    wanted = rows_in(whole)
    assert len(wanted) < len(rows_in(cached))
    every = list(deaths_in(changes))
    assert len(every) > 20
    step = max(1, len(every) // deaths)
    for death in every[step // 2 :: step]:
        folder = Path(shutil.copytree(cached, tmp_path / f"{death.at}-{death.way}"))
        code, said, _ = server.run(words_in(folder, "gc", *options), folder, death=death)
        assert code == -signal.SIGKILL, said
        assert _holds(rows_in(folder), wanted)  # nothing wanted is gone for a moment
        code, said, _ = _run(server, folder, "gc", *options)
        assert code == 0, said
        rows = rows_in(folder)
        assert rows.keys() == wanted.keys()
        assert _holds(rows, wanted)
        assert _computed(server, folder) == 0
        _assert_clean(server, folder)
        shutil.rmtree(folder)


@DEATHS
def test_verify_that_is_killed_while_it_drops(
    cached: Path, tmp_path: Path, server: CrashServer, deaths: int
) -> None:
    expected = rows_in(cached)
    spoilt = Path(shutil.copytree(cached, tmp_path / "spoilt"))
    for shard in _shards_of_several(spoilt):
        flip(shard, 3)
    whole = Path(shutil.copytree(spoilt, tmp_path / "whole"))
    code, said, changes = _run(server, whole, "verify", "--drop")
    assert code == 0, said
    lost = expected.keys() - rows_in(whole).keys()
    assert len(lost) == 3
    every = list(deaths_in(changes))
    assert len(every) > 10
    step = max(1, len(every) // deaths)
    for death in every[step // 2 :: step]:
        folder = Path(shutil.copytree(spoilt, tmp_path / f"{death.at}-{death.way}"))
        words = words_in(folder, "verify", "--drop")
        code, said, _ = server.run(words, folder, death=death)
        assert code == -signal.SIGKILL, said
        code, said, _ = _run(server, folder, "verify", "--drop")
        assert code == 0, said
        rows = rows_in(folder)
        assert rows.keys() == expected.keys() - lost
        assert _holds(expected, rows)
        made = _computed(server, folder)
        used = lost & rows_in(folder).keys()  # the others were orphans
        assert 0 < made == len(used)
        assert _holds(rows_in(folder), rows)
        # they meet other rows in their batch than before, so the last bit may be another one
        assert all(_is_close(rows_in(folder)[key], expected[key]) for key in used)
        _assert_clean(server, folder)
        shutil.rmtree(folder)


def _is_close(bits: np.ndarray, others: np.ndarray) -> bool:
    found, wanted = ((one.astype(np.uint32) << 16).view(np.float32) for one in (bits, others))
    return bool(np.abs(found - wanted).max() <= 2**-7 * np.abs(wanted).max())


def _shards_of_several(folder: Path) -> list[Path]:
    """The largest shard of three stores: its part has other rows to keep."""
    found = []
    for kind in ("vae/edited", "vae/reference-a", "text_embeds/edited"):
        shards = [path for path in (folder / "caches" / kind).rglob("c.*") if path.is_file()]
        found.append(max(sorted(shards), key=lambda path: path.stat().st_size))
    return found
