"""gc and the stages meet records, notes and recipes that this version would not have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from old_notes import OLD_NOTES, as_old_notes
from small_run import said, with_files

from qedit.cache.files.atomic import write_json
from qedit.cache.files.fingerprint import fingerprint
from qedit.cache.files.sealed import sealed, unsealed
from qedit.cache.store.recipe_file import RECIPE_FILE

OTHER_RUN = ("--set", "output_dir=out2")


def _shown() -> dict[str, Any]:
    return said(with_files("gc", "--json"))


@pytest.mark.parametrize("content", [b"", b'{"pairs": []}'], ids=["empty", "of a foreigner"])
def test_the_stages_of_a_run_replace_its_old_note_that_cannot_be_read(
    copy: Path, other_record: Path, content: bytes
) -> None:
    (store,) = as_old_notes(copy / other_record)
    (store / OLD_NOTES / other_record.name).write_bytes(content)
    with_files("gc", expect=5)
    with_files("cache-embeds", *OTHER_RUN)
    assert _shown()["kept_for"] == [str(copy / "out2")]


def test_a_record_of_another_format_is_not_read(copy: Path, other_record: Path) -> None:
    record = unsealed(json.loads(other_record.read_bytes()))
    other_record.write_text(json.dumps(sealed({**record, "format": 2})))
    assert "it has format 2" in with_files("gc", expect=5).stderr


def test_a_run_records_in_copied_caches_what_it_needs_before_the_original_is_back(
    copy: Path, other_record: Path
) -> None:
    """Its record there still names the original's place, and would pass for a mere copy."""
    shutil.copytree("caches", "copied")
    Path("caches").rename("not-mounted")
    elsewhere = ("--set", "cache_dir=copied")
    with_files("cache-embeds", *elsewhere, *OTHER_RUN)
    Path("not-mounted").rename("caches")
    assert said(with_files("gc", "--json", *elsewhere))["kept_for"] == [str(copy / "out2")]


@pytest.mark.parametrize("recipe", [{"rows": "sounds"}, {}], ids=["of another kind", "of none"])
def test_a_store_of_unknown_rows_stays_while_a_record_names_it(
    copy: Path, other_record: Path, recipe: dict[str, str]
) -> None:
    folder, name = other_record.parents[1], fingerprint(recipe)
    write_json(folder / name / RECIPE_FILE, recipe)
    record = unsealed(json.loads(other_record.read_bytes()))
    pins = record["pins"]
    write_json(other_record, sealed({**record, "pins": {**pins, name: next(iter(pins.values()))}}))
    assert str(folder / name) not in _shown()["stores"]


@pytest.mark.parametrize(
    "content", ['{"settings": 3, "model": {}}', '{"recipes": []}', '{"model": 1}']
)
def test_a_run_file_of_another_shape_is_damaged(
    copy: Path, other_record: Path, content: str
) -> None:
    run_file = copy / "out2" / "run.json"
    run_file.parent.mkdir(exist_ok=True)
    run_file.write_text(content)
    assert f"{run_file} cannot be read" in with_files("gc", expect=5).stderr


def test_a_run_file_that_names_no_model_needs_no_base(copy: Path, other_record: Path) -> None:
    (copy / "out2").mkdir(exist_ok=True)
    (copy / "out2" / "run.json").write_text('{"settings": {}, "model": {}}')
    assert _shown()["kept_for"] == [str(copy / "out2")]
