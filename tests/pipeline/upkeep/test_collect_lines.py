"""What `qedit gc` says can be believed and typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import cache_rows, make_run, said, with_files


@pytest.fixture
def recaptioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pairs, encoded; one of them has another caption since."""
    folder = make_run(tmp_path / "run", flavour="edit-v2")
    monkeypatch.chdir(folder)
    cache_rows()
    (folder / "edited" / "p2.txt").write_text("another caption")
    for stage in ("pair", "cache-embeds"):
        with_files(stage)
    return folder


def _last_line(*options: str) -> str:
    return with_files("gc", *options).stdout.splitlines()[-1]


def test_the_command_that_gc_names_does_what_gc_has_shown(recaptioned: Path) -> None:
    assert "`qedit gc --yes --config" in _last_line()
    assert "`qedit gc --compact --yes --config" in _last_line("--compact")


def test_a_part_without_its_unwanted_rows_is_called_written_anew_not_joined(
    recaptioned: Path,
) -> None:
    lines = with_files("gc").stdout.splitlines()
    (tails,) = (line for line in lines if "text_embeds" in line)
    assert "1 of 9 rows that no table names" in tails  # four captions, four null prompts, a new one
    assert tails.endswith("what stays of 1 part is written anew")
    assert not any("joined" in line for line in lines)
    (tails,) = (
        line for line in with_files("gc", "--compact").stdout.splitlines() if "text_" in line
    )
    assert tails.endswith("what stays of 2 parts is written anew")


def test_gc_says_when_it_has_removed_something(recaptioned: Path) -> None:
    shown = said(with_files("gc", "--json"))["bytes"]
    assert shown > 1000
    last = _last_line("--yes")
    assert last.startswith("Done: ")
    assert last.endswith(" kB removed.")
    assert _last_line("--yes") == "Nothing to remove."


def test_gc_says_for_which_other_runs_it_keeps_rows(recaptioned: Path) -> None:
    """Who deletes a run and its files learns why the caches grow no smaller."""
    assert "Kept: " not in with_files("gc").stdout
    gone = ("--set", "output_dir=gone", "--set", "data.edited.resolution=96")
    for stage in ("pair", "cache-vae"):
        with_files(stage, *gone)
    found = said(with_files("gc", "--json"))
    other = str(recaptioned / "gone")
    assert found["kept_for"] == [other]
    assert f"Kept: what other runs want, in {other}.\n" in with_files("gc").stdout
    for record in recaptioned.glob("caches/**/runs/*.json"):
        if other in record.read_text():
            record.unlink()
    after = said(with_files("gc", "--json"))
    assert (after["kept_for"], after["rows"]) == ([], found["rows"] + 4)
