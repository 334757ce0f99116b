"""docs/cli.md is made from --help and says what the program says today."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qedit.pipeline.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# The commands

This page is made from `--help`: `pytest tests/test_docs.py --renew`.

Exit codes: 0 done (also nothing to do), 1 failed, 2 wrong use, 3 another recipe, 4 not complete,
5 damaged, 6 locked, 130 interrupted.
"""


def _sections() -> Iterator[str]:
    runner = CliRunner()
    for name in ("", *main.list_commands(click.Context(main))):
        arguments = [name, "--help"] if name else ["--help"]
        result = runner.invoke(main, arguments, prog_name="qedit", terminal_width=100)
        assert result.exit_code == 0, result.output
        title = f"qedit {name}".strip()
        yield f"\n## `{title}`\n\n```text\n{result.output.rstrip()}\n```\n"


def test_the_page_of_commands_is_what_help_says(pytestconfig: pytest.Config) -> None:
    made = HEAD + "".join(_sections())
    if pytestconfig.getoption("--renew"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made, "pytest tests/test_docs.py --renew"
