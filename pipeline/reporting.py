"""One command from its first word to its exit code: the only code that ends the process."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..cache.errors import QeditError, WrongUse
from .report import TerminalProgress, print_object

INTERRUPTED = 130


@contextmanager
def reporting(
    *,
    folder: Path | None,
    as_json: bool,
    verbose: int,
    quiet: bool,
    debug: bool,
    **_: Any,
) -> Iterator[tuple[TerminalProgress, Callable[[dict[str, Any]], None]]]:
    """Go to the folder, and turn whatever goes wrong into words and an exit code."""
    progress = TerminalProgress(as_json=as_json, verbosity=-1 if quiet else verbose)

    def finish(value: dict[str, Any]) -> None:
        if as_json:
            print_object(value)

    try:
        if folder is not None:
            _go_to(folder)
        yield progress, finish
    except QeditError as error:
        if debug:
            traceback.print_exc()
        finish({"error": error.what, "do": error.do, "exit_code": error.exit_code})
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        finish({"error": "interrupted", "do": "", "exit_code": INTERRUPTED})
        _fail(
            "Interrupted. What was finished is kept: the same command goes on from there.",
            INTERRUPTED,
            label="",
        )
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            _unexpected(error, debug=debug, finish=finish)
        what = f"{error.strerror}: {error.filename or 'while writing'}."
        do = "Make room or choose another cache_dir or output_dir; what was finished is kept."
        finish({"error": what, "do": do, "exit_code": 1})
        _fail(f"{what}\n{do}", 1)
    except Exception as error:
        _unexpected(error, debug=debug, finish=finish)


def _unexpected(error: Exception, *, debug: bool, finish: Callable[[dict[str, Any]], None]) -> None:
    if debug:
        traceback.print_exc()
    what = f"{type(error).__name__}: {error}"
    do = "This is a defect in qedit: run again with --debug and report what it prints."
    finish({"error": what, "do": do, "exit_code": 1})
    _fail(f"{what}\n{do}", 1)


def _fail(text: str, exit_code: int, *, label: str = "Error: ") -> None:
    click.echo(f"{label}{text}", err=True)
    sys.exit(exit_code)


def _go_to(folder: Path) -> None:
    if not folder.is_dir():
        raise WrongUse(f"There is no folder {folder} (-C).", f"Make it: mkdir -p {folder}")
    os.chdir(folder)
