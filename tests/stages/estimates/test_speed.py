"""A dry run counts rows, orphans and bytes, and the time where the speed is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_run import draw, make_run, said, with_files

from qedit.stages.estimates import speed


def test_a_dry_run_counts_what_is_to_do_orphaned_and_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path, flavour="edit-v2"))
    monkeypatch.setattr(speed, "SHORTEST_SECONDS", 0.0)
    with_files("pair")
    first = said(with_files("cache-vae", "--dry-run", "--json"))
    assert (first["missing"], first["orphaned"]) == (8, 0)
    assert "about_seconds" not in first  # nothing was ever measured here
    with_files("cache-vae")
    with_files("cache-embeds")
    draw(tmp_path / "edited" / "p1.png", (128, 72), seed=999)
    (tmp_path / "edited" / "p2.txt").write_text("another caption")
    with_files("pair")
    latents = said(with_files("cache-vae", "--dry-run", "--json"))
    assert (latents["missing"], latents["orphaned"]) == (1, 1)
    # eight rows were measured, of which this one is of about average size
    assert 0 < latents["about_seconds"] < 60
    assert latents["bytes"] < first["bytes"] / 4
    embeds = said(with_files("cache-embeds", "--dry-run", "--json"))
    assert (embeds["missing"], embeds["orphaned"]) == (1, 1)
    line = with_files("cache-embeds", "--dry-run").stdout
    assert "1 to do, 1 orphaned, " in line
    assert "kB, about " in line
    other = said(with_files("cache-vae", "--dry-run", "--json", "--device", "meta"))
    assert "about_seconds" not in other  # another device's pace says nothing
    (tmp_path / "caches" / speed.RATES).write_text("{")
    assert "about_seconds" not in said(with_files("cache-vae", "--dry-run", "--json"))


@pytest.mark.parametrize("stage", ["cache_vae", "cache_embeds"])
def test_to_find_nothing_to_do_imports_no_torch(stage: str) -> None:
    code = f"import sys, qedit.stages.{stage}.stage; print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == "False"
