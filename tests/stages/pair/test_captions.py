"""Captions from every place they may be kept in, cleaned once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qedit.cache.errors import WrongUse
from qedit.config.datasets import CaptionShuffle, Dataset
from qedit.config.settings import Settings
from qedit.stages.models.text.caption_length import CaptionLength
from qedit.stages.pair.captions import Captions, NoCaption, shuffled
from qedit.stages.pair.scan import scan

TARGET = "cats/red_cat-2.png"
MODEL = "nobody/nothing-that-is-needed"
LENGTH = CaptionLength(Settings(model_flavour="edit-v2", pretrained_model_name_or_path=MODEL))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / TARGET).write_bytes(b"not opened here")
    return tmp_path


def captions(folder: Path, **fields: object) -> tuple[str, ...]:
    main = Dataset(id="edits", instance_data_dir=folder, **fields)
    return Captions(main, scan(folder), length=LENGTH).of(TARGET)


def text(folder: Path, data: bytes) -> Path:
    (folder / "cats/red_cat-2.txt").write_bytes(data)
    return folder


def reason(folder: Path, **fields: object) -> str:
    with pytest.raises(NoCaption) as none:
        captions(folder, **fields)
    return none.value.reason


def test_file_name(folder):
    assert captions(folder, caption_strategy="filename") == ("red cat-2",)


def test_text_file_with_bom_crlf_blanks_and_empty_lines(folder):
    text(folder, b"\xef\xbb\xbfmake it red \t\r\n\r\n   \r\n  f\xc3\xa4rbe sie rot\r\nlast")
    assert captions(folder, caption_strategy="textfile") == ("make it red", "färbe sie rot", "last")


def test_old_mac_line_ends_and_doubles(folder):
    text(folder, b"one\rtwo\rone")
    assert captions(folder, caption_strategy="textfile") == ("one", "two")


def test_lines_may_be_one_caption(folder):
    text(folder, b"\n first \r\n\r\nsecond  \n")
    got = captions(folder, caption_strategy="textfile", disable_multiline_split=True)
    assert got == ("first\n\nsecond",)


def test_a_caption_with_a_token_of_pictures_is_found_before_any_encoder_is(folder):
    text(folder, b"make it like <|image_pad|> please\n")
    assert reason(folder, caption_strategy="textfile") == "picture_token_in_caption"


def test_missing_empty_and_undecodable_text(folder):
    assert reason(folder, caption_strategy="textfile") == "missing_caption"
    text(folder, b" \r\n\t\n")
    assert reason(folder, caption_strategy="textfile") == "empty_caption"
    text(folder, b"caf\xe9")
    assert reason(folder, caption_strategy="textfile") == "caption_not_utf8"
    lenient = {"caption_strategy": "textfile", "missing_caption": "empty"}
    assert reason(folder, **lenient) == "caption_not_utf8"
    text(folder, b"\n")
    assert captions(folder, **lenient) == ("",)
    (folder / "cats/red_cat-2.txt").unlink()
    assert captions(folder, **lenient) == ("",)


def test_zero_bytes_and_what_cannot_be_seen_are_no_captions(folder):
    kind = {"caption_strategy": "textfile"}
    for data in ("make it red".encode("utf-16"), "red".encode("utf-16-le"), b"red\0"):
        assert reason(text(folder, data), **kind) == "caption_not_utf8"
    text(folder, "\ufeff\u200b\n\xa0\u2060\n".encode("utf-8-sig"))
    assert reason(folder, **kind) == "empty_caption"
    fields = table(folder, "parquet", [{"filename": TARGET, "caption": "a\0b"}])
    assert reason(folder, **fields) == "caption_not_utf8"


def test_no_strategy_is_no_caption(folder):
    assert reason(folder, caption_strategy=None) == "missing_caption"


def test_instance_prompts(folder):
    prompts = ["make it snow", " let it rain "]
    got = captions(folder, caption_strategy="instanceprompt", instance_prompt=prompts)
    assert got == ("make it snow", "let it rain")
    assert captions(folder, only_instance_prompt=True, instance_prompt="snow") == ("snow",)
    got = captions(folder, prepend_instance_prompt=True, instance_prompt=["a", "b"])
    assert got == ("a red cat-2", "b red cat-2")
    with pytest.raises(WrongUse, match="instance_prompt"):
        captions(folder, caption_strategy="instanceprompt")


def test_filter_list(folder):
    text(folder, b"photo of a cat, 4k, made 2024\nphoto of")
    got = captions(
        folder,
        caption_strategy="textfile",
        caption_filter_list=["photo of", ", 4k", r"s/\d{4}/long ago/"],
    )
    assert got == ("a cat, made long ago",)
    listed = folder / "filters.txt"
    listed.write_text("4k\n\n cat\n", encoding="utf-8")
    got = captions(folder, caption_strategy="textfile", caption_filter_list=str(listed))
    assert got == ("photo of a, , made 2024", "photo of")
    with pytest.raises(WrongUse, match="pattern"):
        captions(folder, caption_filter_list=["s/(/x/"])
    with pytest.raises(WrongUse, match="gone"):
        captions(folder, caption_filter_list=str(folder / "gone.txt"))


def test_shuffle_keeps_the_beginning_and_every_piece():
    options = CaptionShuffle(enable=True, count=4, seed=3, position_start=1)
    variants = shuffled("a, b, c, d, e", options)
    assert variants[0] == "a, b, c, d, e"
    assert len(variants) == 5
    assert len(set(variants)) > 2
    for variant in variants:
        pieces = variant.split(", ")
        assert pieces[0] == "a"
        assert sorted(pieces) == ["a", "b", "c", "d", "e"]
    assert shuffled("a, b, c, d, e", options) == variants
    other = CaptionShuffle(enable=True, count=4, seed=4, position_start=1)
    assert shuffled("a, b, c, d, e", other) != variants


def test_shuffle_by_words_without_the_original(folder):
    options = CaptionShuffle(enable=True, count=8, split_on="space", include_original=False)
    variants = shuffled("one  two three", options)
    assert len(variants) == 8
    assert {tuple(sorted(variant.split(" "))) for variant in variants} == {("one", "three", "two")}
    got = captions(folder, caption_shuffle={"enable": True, "count": 3, "split_on": "space"})
    assert set(got) == {"red cat-2", "cat-2 red"}


ROWS = [
    {"filename": TARGET, "caption": ["make it red", " redder\n", None]},
    {"filename": "other.png", "caption": ["no"]},
]


def table(folder: Path, kind: str, rows: list[dict[str, object]]) -> dict[str, object]:
    path = folder / f"captions.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join(rows[0])]
        lines += [
            ",".join('"' + str(cell).replace('"', '""') + '"' for cell in row.values())
            for row in rows
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
    return {"caption_strategy": kind, kind: {"path": str(path)}}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_list_cells_are_alternatives(folder, kind):
    assert captions(folder, **table(folder, kind, ROWS)) == ("make it red", "redder")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_tables_with_text_cells(folder, kind):
    rows = [
        {"filename": "./" + TARGET, "caption": 'say "red",\nor blue', "more": "007"},
        {"filename": "x.png", "caption": "", "more": "0"},
    ]
    fields = table(folder, kind, rows)
    assert captions(folder, **fields) == ('say "red",', "or blue")
    assert captions(folder, **fields, disable_multiline_split=True) == ('say "red",\nor blue',)
    fields[kind] |= {"caption_column": ["more", "caption"]}
    assert captions(folder, **fields)[0] == "007"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_tables_may_leave_extensions_out_and_have_a_fallback(folder, kind):
    rows = [{"filename": "cats/red_cat-2", "caption": " ", "spare": "make it red"}]
    fields = table(folder, kind, rows)
    assert reason(folder, **fields) == "empty_caption"
    fields[kind] |= {"fallback_caption_column": "spare"}
    assert captions(folder, **fields) == ("make it red",)


def test_texts_that_look_like_times_stay_as_they_are_written(folder):
    (folder / "cats/red_cat-2.png").rename(folder / "2024-05-06.png")
    rows = [{"filename": "2024-05-06", "caption": ["2024-05-06", "1999-01-01T00:00:00"]}]
    main = Dataset(id="edits", instance_data_dir=folder, **table(folder, "jsonl", rows))
    found = Captions(main, scan(folder), length=LENGTH).of("2024-05-06.png")
    assert found == ("2024-05-06", "1999-01-01T00:00:00")


@pytest.mark.parametrize("cell", [b"red", {"en": "red"}, 0.5])
def test_cells_that_are_no_texts_are_refused(folder, cell):
    fields = table(folder, "parquet", [{"filename": TARGET, "caption": cell}])
    with pytest.raises(WrongUse, match=r"column caption .* holds"):
        captions(folder, **fields)


def test_tables_without_the_row_the_column_or_the_file(folder):
    rows = [{"filename": "other.png", "caption": "no"}]
    assert reason(folder, **table(folder, "csv", rows)) == "missing_caption"
    fields = table(folder, "csv", [{"name": TARGET, "caption": "no"}])
    with pytest.raises(WrongUse, match="no column filename; it has name, caption"):
        captions(folder, **fields)
    spoiled = folder / "captions.csv"
    for data in (b"", b"filename,caption\na.jpg,red, blue\n", b"filename,caption\na,caf\xe9\n"):
        spoiled.write_bytes(data)
        with pytest.raises(WrongUse, match=r"cannot be read(.|\n)*Fix the file: UTF-8"):
            captions(folder, **fields)
    spoiled.unlink()
    with pytest.raises(WrongUse, match=r"captions\.csv cannot be read"):
        captions(folder, **fields)


def test_a_caption_file_is_a_regular_one_of_a_megabyte_at_most(folder):
    path = text(folder, b"x\n" * 500_000) / "cats/red_cat-2.txt"
    assert captions(folder, caption_strategy="textfile") == ("x",)
    path.write_bytes(b"x\n" * 500_001)
    assert reason(folder, caption_strategy="textfile") == "caption_too_large"
    path.unlink()
    os.mkfifo(path)
    assert reason(folder, caption_strategy="textfile") == "caption_not_a_file"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_caption_of_a_table_has_a_megabyte_at_most(folder, kind):
    rows = [{"filename": TARGET, "caption": "x\n" * 500_001}]
    assert reason(folder, **table(folder, kind, rows)) == "caption_too_large"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_table_is_a_regular_file_and_no_row_is_huge(folder, kind):
    rows = [{"filename": TARGET, "caption": "red"}, {"filename": "b", "caption": "x" * 70_000_000}]
    fields = table(folder, kind, rows)
    path = folder / f"captions.{kind}"
    with pytest.raises(WrongUse, match=rf"captions\.{kind} cannot be read: .*(\n.*)*Fix the file"):
        captions(folder, **fields)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WrongUse, match="it is not a regular file"):
        captions(folder, **fields)


def test_a_line_of_a_table_that_is_no_object_is_named(folder):
    fields = table(folder, "jsonl", [{"filename": TARGET, "caption": "red"}])
    for line, why in (("[1]", "is not a JSON object"), ('{"a"', "Expecting"), ("[" * 9999, "deep")):
        (folder / "captions.jsonl").write_text(f'{{"filename": "a", "caption": "b"}}\n\n{line}\n')
        with pytest.raises(WrongUse, match=f"line 3.*{why}|nested too {why}"):
            captions(folder, **fields)
