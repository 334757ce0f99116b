"""One command from its first word to its exit code: the only code that ends the process."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import click

from ...cache.errors import OfOneProcess, QeditError, WrongUse
from ...cache.files.atomic import BROKEN_DISK
from ...cache.files.decides_nothing import LOG
from ...cache.files.failing_disk import LOST
from ...stages.stop_signals import exit_code_of
from .options import options_of
from .output import SILENT, TerminalProgress, as_object, details, escaped, print_object

_ROOM = "Make room, or choose another cache_dir or output_dir; what was finished is kept."
_RIGHTS = "Choose a folder that may be written to; what was finished is kept."
_DISK = "The disk fails, or has gone: look after it. What was finished is kept."
_PLACE = "A file stands where a folder is wanted, or the other way round: move it away."
# what a user can mend, by the number the operating system gives it
USERS_ERRORS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    **dict.fromkeys((*LOST, *BROKEN_DISK), _DISK),
    errno.ENAMETOOLONG: "Choose a shorter cache_dir, output_dir, -C or id.",
    errno.ELOOP: "A link leads to itself: remove it, or name another folder.",
    errno.EEXIST: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: _PLACE,
}
# commands that take the two files, as messages name them
COMMAND = re.compile(
    r"`qedit (pair|cache-vae|cache-embeds|cache-base|train|run|status|verify|gc|unlock|inspect|plan"
    r"|preview)\b([^`]*)`"
)

# Where bitsandbytes, which diffusers and peft import, advises on a faster 4-bit product for CPUs.
_ADVISER = "bitsandbytes.backends.cpu.ops"


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "kernels-community" not in str(record.msg)


@contextmanager
def reporting(
    *,
    folder: Path | None,
    as_json: bool,
    verbose: int,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> Iterator[tuple[TerminalProgress, Callable[[dict[str, Any]], None]]]:
    """Go to the folder, and turn whatever goes wrong into words and an exit code."""
    logging.getLogger(_ADVISER).addFilter(_is_no_advice)
    # of several processes that train one run, the first one speaks
    silent = rank_of_this_process() > 0
    verbosity = SILENT if silent else -1 if quiet else verbose
    spelled = spelling(folder=folder, **given)
    progress = TerminalProgress(as_json=as_json, verbosity=verbosity, spelled=spelled)

    def finish(value: dict[str, Any]) -> None:
        if as_json and not silent:
            print_object(value)

    warn_once = cache(progress.warn)  # of what is read again and again
    logged = logging.Handler()
    logged.emit = lambda record: warn_once(record.getMessage())  # type: ignore[method-assign]
    LOG.addHandler(logged)
    try:
        if folder is not None:
            _go_to(folder)
        yield progress, finish
    except BrokenPipeError:
        raise  # `| head` has seen enough: click ends the command without a word
    except KeyboardInterrupt as error:
        exit_code = exit_code_of(error)
        if not silent:
            finish({"error": "interrupted", "do": "", "exit_code": exit_code})
            again = "the same command goes on from there"
            click.echo(f"Interrupted. What was finished is kept: {again}.", err=True)
        sys.exit(exit_code)
    except Exception as error:
        what, do, exit_code = _in_words(error, debug=debug)
        # an error of every process is reported by the first one
        if silent and isinstance(error, QeditError) and not isinstance(error, OfOneProcess):
            sys.exit(exit_code)
        if debug:
            traceback.print_exc()
        do = spelled(do)
        finish({"error": what, "do": do, "exit_code": exit_code})
        click.echo("Error: " + escaped("\n".join(filter(None, (what, do)))), err=True)
        sys.exit(exit_code)
    finally:
        LOG.removeHandler(logged)


def _in_words(error: Exception, *, debug: bool) -> tuple[str, str, int]:
    """Return what went wrong, what to do about it, and the exit code."""
    if isinstance(error, QeditError):
        return error.what, error.do, error.exit_code
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return f"{error}.", USERS_ERRORS[errno.ELOOP], 1
    if isinstance(error, OSError) and error.errno in USERS_ERRORS and not debug:
        what = f"{error.strerror}: {error.filename or 'while reading or writing'}."
        return what, USERS_ERRORS[error.errno], 1
    what = f"{type(error).__name__}: {error}"
    return what, "This is a defect in qedit: run again with --debug and report what it prints.", 1


def rank_of_this_process() -> int:
    """Return its number among those that a launcher (torchrun, accelerate) started; else 0."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return int(os.environ.get("RANK", "0")) if several else 0


def spelling(**options: Any) -> Callable[[str], str]:
    """Return a function that completes the commands named in a line, so that they can be typed."""
    return lambda line: with_options(line, **options)


def with_options(
    text: str,
    *,
    folder: Path | None = None,
    config: Path | None = None,
    data: Path | None = None,
    sets: tuple[str, ...] = (),
    assignments: tuple[str, ...] = (),
    tiny: bool = False,
    **_: Any,
) -> str:
    """Return `text` with the options of this command added to every command that it names.

    One that has them already is left as it is.

    >>> with_options("Run `qedit pair`.", config=Path("a b.json"), sets=("seed=3",))
    "Run `qedit pair --config 'a b.json' --set seed=3`."
    """
    # without its example, --tiny itself is the mistake that `text` tells of
    words = [*assignments, *(["--tiny"] if tiny and assignments else [])]
    for option, path in (("-C", folder), ("--config", config), ("--data", data)):
        words += [option, str(path)] if path is not None else []
    for setting in sets:
        words += ["--set", setting]
    tail = "".join(f" {shlex.quote(word)}" for word in words)

    def completed(found: re.Match[str]) -> str:
        has_them = tail and tail in found[2]
        return found[0] if has_them else f"`qedit {found[1]}{found[2]}{tail}`"

    return COMMAND.sub(completed, text)


def _go_to(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WrongUse(f"{folder} (-C) is a file, not a folder.", "Name the folder to work in.")
    if not folder.is_dir():
        make_it = f"Make it: `mkdir -p {shlex.quote(str(folder))}`."
        raise WrongUse(f"There is no folder {folder} (-C).", make_it)
    os.chdir(folder)


def run_named(command: str, *, all_stages: bool = False, **given: Any) -> None:
    """Load the configuration, run stages, report; every command that runs stages ends here.

    Args:
        all_stages: run every stage in order; else the one that `command` names.
        given: all options of the command.
    """
    with reporting(**given) as (progress, finish):
        from ..runner import ORDER, run_stages

        configuration = configuration_of(progress, **given)
        names = ORDER if all_stages else (command,)
        options = {name: options_of(name, given) for name in names}
        outcomes = run_stages(
            names, configuration, progress, dry_run=given["dry_run"], options=options
        )
        if given["verbose"]:
            for line in chain.from_iterable(map(details, outcomes)):
                progress.say(line)
        stages = [as_object(outcome) for outcome in outcomes]
        finish(stages[0] if len(stages) == 1 else {"stage": command, "stages": stages})


def configuration_of(
    progress: TerminalProgress,
    *,
    config: Path | None,
    data: Path | None,
    sets: tuple[str, ...],
    assignments: tuple[str, ...],
    tiny: bool,
    dry_run: bool = False,
    **_: Any,
) -> Any:
    """Return the configuration that the shared options name; its notes become warnings."""
    from ...config.loading import load
    from ..demo.examples import example_named, tiny_sets

    example = example_named(assignments)
    if tiny and example is None:
        raise WrongUse(
            "--tiny goes with a shipped example.",
            "Type `qedit train --prepare example=qwen_image.edit-v1-lora --tiny`.",
        )
    if tiny and example is not None:
        sets = (*tiny_sets(example, progress, dry_run=dry_run), *sets)
    configuration = load(config, data, sets=sets, example=example)
    for note in configuration.notes:
        progress.warn(note)
    return configuration
