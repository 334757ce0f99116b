"""Everything that is to be known of a GPU, in one command and under nine minutes.

    python benchmarks/gpu/measure.py                    # on the GPU, at full scale
    python benchmarks/gpu/measure.py --small            # on the CPU, to try the harness
    python benchmarks/gpu/measure.py --list             # the rows, in the order of their worth
    python benchmarks/gpu/measure.py --resume benchmarks/results-20260101-120000.json
                                                        # the rows that one is without

Rows that share a base share a process; the next one imports what it needs while the one before
it measures. A row that fails, hangs or takes its process with it says so and leaves the others
standing; rows that do not fit into --budget seconds stay empty and are named: on the same GPU,
--resume measures those and has one table of both. It goes to benchmarks/RESULTS.md at the end
(with --small to a folder for what is temporary), every row to the JSON beside it as soon as it is
there. Nothing
is fetched; the packages that pyproject.toml names must be there, qedit itself is taken from
where this file lies.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cases import READY, Asked, Session, sessions
from results import is_measured, with_section
from table import Row, ceiling_of, row_line, section, verdicts

HERE = Path(__file__).parent
RESULTS = HERE.parent / "RESULTS.md"
SMALL_RESULTS = Path(tempfile.gettempdir()) / "qedit-small" / "RESULTS.md"
MOST_SECONDS_OF_IMPORTS = 120
LEAST_SECONDS = 15  # below which no process is begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small model on the CPU")
    parser.add_argument("--budget", type=float, default=520, help="seconds for all of it")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    parser.add_argument("--resume", type=Path, help="results-….json: measure what it is without")
    parser.add_argument("--out", type=Path, help="the Markdown file to add to")
    parser.add_argument("--list", action="store_true", help="name the rows and do nothing")
    given = parser.parse_args()
    out: Path = given.out or (SMALL_RESULTS if given.small else RESULTS)
    now = datetime.now(UTC)
    book = Book(given.resume or out.with_name(f"results-{now:%Y%m%d-%H%M%S}.json"))
    if given.resume:
        book.take_over()
    asked = [_only(session, given.only, book) for session in sessions()]
    if given.list:
        print(*(row_line(case.as_object(), 0) for one in asked for case in one.cases), sep="\n")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    extra = ("--small", "--device", "cpu") if given.small else ()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        measure([one for one in asked if one.cases], book, Path(folder), given.budget, extra)
    text = section(
        book.rows,
        command=" ".join(["python", *sys.argv]),
        source=book.path.name,
        day=f"{now:%Y-%m-%d}",
        seconds=time.monotonic() - began,
    )
    before = out.read_text(encoding="utf-8") if out.is_file() else "# Results on GPUs\n"
    after = with_section(before, text, book.rows, source=book.path.name)
    out.write_text(after, encoding="utf-8")
    print("\n".join(["", text, "", *verdicts(book.rows)]))


def _only(session: Session, words: str, book: Book) -> Session:
    wanted = (one for one in session.cases if words in one.row or one.what == "ceiling")
    kept = (one for one in wanted if not book.has(one))
    return replace(session, cases=tuple(kept))


@dataclass
class Book:
    """The rows so far; the file has them as soon as they are there."""

    path: Path
    rows: list[Row] = field(default_factory=list)

    def take_over(self) -> None:
        """What was measured before, in this file; what was not is measured now."""
        before: list[Row] = json.loads(self.path.read_text(encoding="utf-8"))
        self.rows = [row for row in before if is_measured(row)]

    def has(self, asked: Asked) -> bool:
        wanted = asked.as_object()
        names = ("row", "flavour", "references")
        return any(all(row[name] == wanted[name] for name in names) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        beside.replace(self.path)
        print(row_line(row, self.ceiling), flush=True)

    @property
    def ceiling(self) -> float:
        """TFLOP/s of a large bf16 product; 0 where that is not known."""
        return ceiling_of(self.rows)


def measure(
    wanted: Sequence[Session],
    book: Book,
    folder: Path,
    budget_seconds: float,
    extra: Sequence[str] = (),
) -> None:
    """Run every session while there is time; each row asked for gets a line in `book`."""
    deadline = time.monotonic() + budget_seconds
    environment = with_qedit(folder)
    ahead: Worker | None = None
    for place, session in enumerate(wanted):
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS and place:
            for case in session.cases:
                book.add({**case.as_object(), "error": "not run: out of time"})
            continue
        worker = ahead or Worker(session, session.cases, extra, environment)
        following = wanted[place + 1 : place + 2]
        ahead = next((Worker(one, one.cases, extra, environment) for one in following), None)
        for row in rows_of(worker, deadline):
            book.add(row)
    if ahead is not None:
        ahead.end()


def with_qedit(folder: Path) -> dict[str, str]:
    """An environment in which `qedit` is the checkout that this file lies in.

    What a process leaves behind when it is ended lies in `folder`, too.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    (folder / "qedit").symlink_to(HERE.parent.parent, target_is_directory=True)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    own = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(temporary)}
    return {**os.environ, **offline, **own}


class Worker:
    """A process that imports what it needs, and measures once it is told to."""

    def __init__(
        self,
        session: Session,
        cases: Sequence[Asked],
        extra: Sequence[str],
        environment: dict[str, str],
    ) -> None:
        self.session, self.cases, self.extra = session, tuple(cases), extra
        self.environment = environment
        told = json.dumps([one.as_object() for one in self.cases])
        command = [sys.executable, str(HERE / session.script), "--wait", "--cases", told, *extra]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.was_ready = threading.Event()  # whether it came to measuring at all
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, printed: IO[str]) -> None:
        with printed:
            for line in printed:
                if line.strip() == READY:
                    self.was_ready.set()
                if line.startswith("{"):
                    self._lines.put(line)
        self._lines.put(None)

    def go(self, *, seconds: float) -> None:
        """Have it measure as soon as it has imported what it needs."""
        until = time.monotonic() + min(seconds, MOST_SECONDS_OF_IMPORTS)
        while not self.was_ready.wait(0.05) and self._process.poll() is None:
            if time.monotonic() > until:
                self._process.kill()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it is dead already; what it left behind says why

    def row(self, *, seconds: float) -> Row | str:
        """The next row, or why there is none."""
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return f"ended after {seconds:.0f} s"
        if line is None:
            return f"its process ended with {self._process.wait()}: {self._last_words()}"
        row: Row = json.loads(line)
        return row

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def others(self, cases: Sequence[Asked]) -> Worker:
        """Another process, for what is left of the session."""
        return Worker(self.session, cases, self.extra, self.environment)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._errors.close()
        if self._process.stdin is not None:
            self._process.stdin.close()


def rows_of(worker: Worker, deadline: float) -> Iterator[Row]:
    """A row for every case of the session, whatever becomes of its process."""
    worker.go(seconds=deadline - time.monotonic())
    left = list(worker.cases)
    while left:
        case = left.pop(0)
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            yield {**case.as_object(), "error": "not run: out of time"}
            continue
        row = worker.row(seconds=min(case.limit_seconds, seconds))
        if isinstance(row, str):
            yield {**case.as_object(), "error": row}
            worker.end()
            if not worker.was_ready.is_set():
                yield from ({**one.as_object(), "error": row} for one in left)
                return
            if deadline - time.monotonic() < LEAST_SECONDS:
                deadline = 0.0
            elif left:
                worker = worker.others(left)
                worker.go(seconds=deadline - time.monotonic())
            continue
        yield row
    worker.end()


if __name__ == "__main__":
    main()
