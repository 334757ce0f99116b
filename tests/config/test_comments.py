"""JSON with comments and trailing commas."""

from __future__ import annotations

import pytest

from qedit.config.comments import NotJson, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1} // end', {"a": 1}),
        ('// first\n{"a": /* inside */ 1}', {"a": 1}),
        ('/* one\ntwo */ {"a": 1,\n}', {"a": 1}),
        ("[1, 2, /* last */\n // really\n]", [1, 2]),
        ('{"a": [1,], "b": {"c": 2,},}', {"a": [1], "b": {"c": 2}}),
        ('{"url": "http://x//y", "glob": "/*.png,]"}', {"url": "http://x//y", "glob": "/*.png,]"}),
        (
            '{"quote": "\\" // no comment", "slash": "\\\\"}',
            {"quote": '" // no comment', "slash": "\\"},
        ),
        ('{"a": "x,"}', {"a": "x,"}),
        ("[true, null, -1.5e-3]", [True, None, -1.5e-3]),
    ],
)
def test_what_people_write_is_read(text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{\n  "a": 1\n  "b": 2\n}', "line 3, column 3"),
        ('{\n  /* a\n comment */ "a" 1\n}', "line 3, column 17"),
        ('{\n  // one, {\n  "a": ,\n}', "line 3, column 8"),
        ("[1] 2", "line 1, column 5"),
        ("[1,,]", "line 1, column 4"),
        ("[,]", "line 1, column 2"),
        ('{"a": 1', "line 1, column 8"),
        ('{"a": "one\ntwo"}', "line 1, column 11"),
        ("", "line 1, column 1"),
        ("[1]\n  /* for ever", "line 2, column 3"),
    ],
)
def test_a_syntax_error_names_its_line_and_column(text: str, place: str) -> None:
    with pytest.raises(NotJson, match=f"^{place}: "):
        parse(text)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(NotJson, match="`seed` is given twice"):
        parse('{"seed": 1, "seed": 2}')


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(NotJson, match=word):
        parse(f"[{word}]")


def test_deep_nesting_is_an_error_in_words() -> None:
    with pytest.raises(NotJson):
        parse("[" * 100_000)
