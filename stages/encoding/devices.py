"""One worker process for each device; they share the work by claiming it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ...cache.errors import QeditError
from ...config.configuration import Configuration
from ..stage import Progress
from .device_options import Ways, available_cores
from .run_on_device import Filled

Fill = Callable[[Configuration, Progress, Ways], Filled]


def on_each_device(
    ways: Ways, fill: Fill, configuration: Configuration, progress: Progress
) -> Filled:
    """Run `fill` here, or in one process for each of `ways.devices` at the same time.

    Raises:
        QeditError: what the first worker that failed raised; the others had finished by then.
    """
    if not ways.devices:
        return fill(configuration, progress, ways)
    if len(ways.devices) == 1:
        return fill(configuration, progress, replace(ways, device=ways.devices[0]))
    workers = [_start(ways, name, fill, configuration) for name in ways.devices]
    try:
        return _together(workers, progress)
    except BaseException:
        for worker in workers:
            worker.interrupt()
        raise
    finally:
        for worker in workers:
            worker.let_end(progress)


@dataclass
class _Worker:
    device: str
    process: BaseProcess
    words: Connection

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)

    def let_end(self, progress: Progress) -> None:
        """Wait for it, and hear it out: one that nobody hears comes to a stop in a full pipe."""
        with suppress(EOFError, OSError):  # it may be gone in the middle of a word
            while True:
                what, said = self.words.recv()
                if what == "warn":
                    progress.warn(said)
        self.process.join()


def _start(ways: Ways, device: str, fill: Fill, configuration: Configuration) -> _Worker:
    context = multiprocessing.get_context("spawn")
    words, theirs = context.Pipe(duplex=False)
    own = replace(ways, device=device)
    process = context.Process(target=_work, args=(theirs, fill, configuration, own), daemon=True)
    resource_tracker.ensure_running()  # it would end the waiting
    with _ctrl_c_waits():
        process.start()
    theirs.close()
    return _Worker(device, process, words)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Until the block ends; in a process that is started in it, until it has begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _together(workers: list[_Worker], progress: Progress) -> Filled:
    """Show what all of them say as if one said it, until each has ended."""
    filled, errors = Filled(), list[QeditError]()
    talking = {worker.words: worker for worker in workers}
    with _Bars(progress) as bars:
        while talking:
            for words in wait(list(talking)):
                assert isinstance(words, Connection)
                worker = talking[words]
                try:
                    what, said = words.recv()
                except (EOFError, OSError):
                    del talking[words]
                    errors.append(_gone(worker))
                    continue
                if what == "filled":
                    filled.add(said)
                elif what == "error":
                    errors.append(_error(worker, *said))
                else:
                    bars.hear(what, said)
                if what in ("filled", "error"):
                    del talking[words]
    if errors:
        raise errors[0]
    return filled


def _gone(worker: _Worker) -> QeditError:
    worker.process.join()
    return QeditError(
        f"The worker on {worker.device} ended without a word "
        f"(exit code {worker.process.exitcode}).",
        "Run the same command again: what was finished is kept. If it had no memory left, use "
        "fewer `--devices` or `--workers`.",
    )


def _error(worker: _Worker, kind: type[QeditError], what: str, do: str) -> QeditError:
    return kind(f"On {worker.device}: {what}", do)


class _Bars:
    """The bars of several workers as one; each counts the same work as a whole."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: Any = None
        self._advance: Callable[[int], None] = lambda count: None
        self._name: str | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def hear(self, what: str, said: Any) -> None:
        if what == "bar":
            if said[1] != self._name:
                self._close()
                self._name = said[1]
                self._bar = self._progress.bar(said[0], said[1], unit=said[2])
                self._advance = self._bar.__enter__()
        elif what == "advance":
            self._advance(said)
        elif what == "note":
            self._progress.note(**said)
        elif what == "say":
            self._progress.say(said)
        else:
            self._progress.warn(said)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


class _Telling:
    """A worker's side: the Progress protocol, told to the process that started it."""

    def __init__(self, words: Connection) -> None:
        self._words = words

    @contextmanager
    def bar(
        self, total: int, what: str, *, unit: str = "row", initial: int = 0
    ) -> Iterator[Callable[[int], None]]:
        self._words.send(("bar", (total, what, unit)))
        yield lambda count: self._words.send(("advance", count))

    def note(self, **values: str) -> None:
        self._words.send(("note", values))

    def say(self, line: str) -> None:
        self._words.send(("say", line))

    def warn(self, line: str) -> None:
        self._words.send(("warn", line))


def _work(words: Connection, fill: Fill, configuration: Configuration, ways: Ways) -> None:
    """What a worker process does."""
    try:
        signal.signal(signal.SIGINT, _interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        import torch

        if ways.device == "cpu":
            torch.set_num_threads(max(1, available_cores() // len(ways.devices)))
        words.send(("filled", fill(configuration, _Telling(words), ways)))
    except QeditError as error:
        words.send(("error", (type(error), error.what, error.do)))
    except KeyboardInterrupt:
        pass  # who started it says so
    except Exception as error:
        said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        words.send(("error", (QeditError, said, "")))


def _interrupt_once(number: int, frame: object) -> None:
    """A terminal's Ctrl-C comes twice: from itself, and from who started this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
