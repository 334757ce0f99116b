"""Progress and results in words: bars on a terminal, plain lines elsewhere, JSON when asked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import category

from ...stages.stage import Outcome

if TYPE_CHECKING:
    from tqdm import tqdm

WIDEST_STAGE_NAME = len("cache-embeds")
DRAWN_EVERY_SECONDS = 1.0
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories
SILENT = -2  # a verbosity at which not even warnings are said


class TerminalProgress:
    """Bars and lines for one command.

    Bars go to standard error and only to a terminal. Lines go to standard output, or to
    standard error when standard output is kept for one JSON object. `spelled` puts the
    finishing touch to each of them.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        verbosity: int = 0,
        spelled: Callable[[str], str] = str,
    ) -> None:
        self._lines: TextIO = sys.stderr if as_json else sys.stdout
        self._verbosity, self._spelled = verbosity, spelled
        self._bar: tqdm[Any] | None = None
        self._drawn = 0.0

    @contextmanager
    def bar(
        self, total: int, what: str, *, unit: str = "row", initial: int = 0
    ) -> Iterator[Callable[[int], None]]:
        from tqdm import tqdm

        quiet = self._verbosity < 0 or not sys.stderr.isatty()
        outer = self._bar  # previews have a bar of their own inside that of the training
        with tqdm(
            total=total,
            desc=escaped(what),
            unit=f" {unit}",
            initial=initial,
            disable=quiet,
            dynamic_ncols=True,
            file=sys.stderr,
            leave=False,
        ) as self._bar:
            yield self._advance
        self._bar = outer

    def _advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def note(self, **values: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            # while nothing moves on, nobody else draws the bar
            if not self._bar.disable and time.monotonic() - self._drawn >= DRAWN_EVERY_SECONDS:
                self._bar.refresh()
                self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        if self._verbosity >= 0:
            self._write(self._spelled(line), self._lines)

    def warn(self, line: str) -> None:
        if self._verbosity > SILENT:
            self._write(f"Warning: {self._spelled(line)}", sys.stderr)

    def _write(self, line: str, to: TextIO) -> None:
        line = escaped(line)
        if self._bar is None or self._bar.disable:
            print(line, file=to, flush=True)
        else:
            self._bar.write(line, file=to)


def escaped(text: str) -> str:
    """Return `text` with every character that could steer a terminal as JSON escapes it.

    Names, captions and foreign JSON reach the terminal through here alone. Line breaks stay:
    messages have several lines, and inside a JSON text there are none. Escaped are controls,
    formats (which turn the direction of writing), surrogates and Unicode's own line breaks.

    >>> escaped("a\\x1b[31m")
    'a\\\\u001b[31m'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        json.dumps(mark)[1:-1] if mark != "\n" and category(mark) in STEERING else mark
        for mark in text
    )


def summary(outcome: Outcome, *, dry_run: bool = False) -> str:
    """Return one line about what a stage did.

    >>> summary(Outcome("cache-vae", 512, 512, 0, 0, 0.1, "cache/vae"))
    'cache-vae     512 wanted, 512 kept, nothing to do'
    >>> summary(Outcome("cache-vae", 512, 511, 1, 0, 2.0, "cache/vae", unit="latents"))
    'cache-vae     512 wanted, 511 kept, 1 latent made in 2.0 s'
    """
    name = outcome.stage.ljust(WIDEST_STAGE_NAME)
    counts = [f"{outcome.wanted} wanted", f"{outcome.kept} kept"]
    if outcome.failed:
        counts.append(f"{outcome.failed} rejected")
    if dry_run:
        counts.append(f"{outcome.wanted - outcome.kept - outcome.failed} to do")
        counts += _foreseen(outcome.facts)
    elif outcome.computed == 0:
        counts.append("nothing to do")
    else:
        made = counted(outcome.computed, outcome.unit.removesuffix("s"))
        counts.append(f"{made} made in {duration(outcome.seconds)}")
    return f"{name}  {', '.join(counts)}"


def details(outcome: Outcome) -> Iterator[str]:
    """Yield a line for each value that `--json` has of one stage beside the counts.

    >>> list(details(Outcome("train", 9, 0, 9, 0, 1.0, "out", facts={"loss": {"last": 0.5}})))
    ['train         where: out', 'train         loss: last 0.5']
    """
    name = outcome.stage.ljust(WIDEST_STAGE_NAME)
    for what, fact in {"where": outcome.where, **outcome.facts}.items():
        if isinstance(fact, Mapping):
            fact = ", ".join(f"{part} {value}" for part, value in fact.items())
        elif isinstance(fact, list | tuple):
            fact = ", ".join(map(str, fact))
        if fact not in ("", None):
            yield f"{name}  {what}: {fact}"


def _foreseen(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what else a dry run knows of what it would do."""
    if facts.get("orphaned", 0) is None:
        yield "orphaned rows not known (`qedit gc` says why)"
    elif facts.get("orphaned"):
        yield f"{facts['orphaned']} orphaned"
    if facts.get("bytes"):
        yield size(facts["bytes"])
    if "about_seconds" in facts:
        yield f"about {duration(facts['about_seconds'])}"


def duration(seconds: float) -> str:
    """Return a time in words: '0.4 s', '1 min 05 s', '2 h 10 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, what: str) -> str:
    """Return a count with its noun: '1 row', '42 rows'."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size(count_bytes: int) -> str:
    """Return a number of bytes in words: '312 B', '4.6 MB', '1.2 GB'."""
    if count_bytes < 1000:
        return f"{count_bytes} B"
    value = float(count_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def as_object(outcome: Outcome) -> dict[str, Any]:
    """Return the object of one stage for `--json`."""
    values = asdict(outcome)
    lines = values.pop("lines")
    facts = values.pop("facts")
    return {**values, "seconds": round(outcome.seconds, 3), **facts, "notes": list(lines)}


def print_object(value: dict[str, Any]) -> None:
    """Print the one JSON object on standard output."""
    print(escaped(json.dumps(value, ensure_ascii=False)), flush=True)
