"""One worker process for each device; the processes share the work by claiming it."""

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
from ..stop_signals import SIGNALS, Stopped, handle_signals
from .device_options import DeviceOptions, available_cores
from .run_on_device import Totals

Encode = Callable[[Configuration, Progress, DeviceOptions], Totals]


def on_each_device(
    options: DeviceOptions, encode: Encode, configuration: Configuration, progress: Progress
) -> Totals:
    """Run `encode` here, or in one process for each of `options.devices` at the same time.

    Raises:
        QeditError: what the first worker that failed raised; the others had finished by then.
    """
    if not options.devices:
        return encode(configuration, progress, options)
    if len(options.devices) == 1:
        return encode(configuration, progress, replace(options, device=options.devices[0]))
    workers = [_start(options, name, encode, configuration) for name in options.devices]
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
    messages: Connection

    def interrupt(self) -> None:
        """Interrupt the worker as Ctrl-C does."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)

    def let_end(self, progress: Progress) -> None:
        """Wait for its end and read what it sends: it would stop at a full pipe."""
        with suppress(EOFError, OSError):  # it may be gone in the middle of a message
            while True:
                kind, message = self.messages.recv()
                if kind == "warn":
                    progress.warn(message)
        self.process.join()


def _start(
    options: DeviceOptions, device: str, encode: Encode, configuration: Configuration
) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    own = replace(options, device=device)
    process = context.Process(target=_work, args=(sending, encode, configuration, own), daemon=True)
    resource_tracker.ensure_running()  # it would end the waiting
    with _signals_wait():
        process.start()
    sending.close()
    return _Worker(device, process, receiving)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back signals until the block ends; a process started in it, until that has begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _together(workers: list[_Worker], progress: Progress) -> Totals:
    """Show the progress of all of them as that of one, until each has ended."""
    totals, errors = Totals(), list[QeditError]()
    running = {worker.messages: worker for worker in workers}
    with _Bars(progress) as bars:
        while running:
            for messages in wait(list(running)):
                assert isinstance(messages, Connection)
                worker = running[messages]
                try:
                    kind, message = messages.recv()
                except (EOFError, OSError):
                    del running[messages]
                    errors.append(_gone(worker))
                    continue
                if kind == "totals":
                    totals.add(message)
                elif kind == "error":
                    errors.append(_error(worker, *message))
                else:
                    bars.show(kind, message)
                if kind in ("totals", "error"):
                    del running[messages]
    if errors:
        raise errors[0]
    return totals


def _gone(worker: _Worker) -> QeditError:
    worker.process.join()
    return QeditError(
        f"The worker on {worker.device} ended without an error message "
        f"(exit code {worker.process.exitcode}).",
        "Run the same command again: what was finished is kept. If it had no memory left, use "
        "fewer `--devices` or `--workers`.",
    )


def _error(worker: _Worker, kind: type[QeditError], what: str, do: str) -> QeditError:
    return kind(f"On {worker.device}: {what}", do)


class _Bars:
    """Shows the bars of several workers as one: each counts the same work as a whole."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: Any = None
        self._advance: Callable[[int], None] = lambda count: None
        self._name: str | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def show(self, kind: str, message: Any) -> None:
        if kind == "bar":
            if message[1] != self._name:
                self._close()
                self._name = message[1]
                self._bar = self._progress.bar(message[0], message[1], unit=message[2])
                self._advance = self._bar.__enter__()
        elif kind == "advance":
            self._advance(message)
        elif kind == "note":
            self._progress.note(**message)
        elif kind == "say":
            self._progress.say(message)
        else:
            self._progress.warn(message)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


class _SentProgress:
    """The Progress of a worker, which sends everything to the process that started it."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages

    @contextmanager
    def bar(
        self, total: int, what: str, *, unit: str = "row", initial: int = 0
    ) -> Iterator[Callable[[int], None]]:
        self._messages.send(("bar", (total, what, unit)))
        yield lambda count: self._messages.send(("advance", count))

    def note(self, **values: str) -> None:
        self._messages.send(("note", values))

    def say(self, line: str) -> None:
        self._messages.send(("say", line))

    def warn(self, line: str) -> None:
        self._messages.send(("warn", line))


def _work(
    messages: Connection, encode: Encode, configuration: Configuration, options: DeviceOptions
) -> None:
    """Encode in a worker process, and send what comes of it."""
    try:
        handle_signals(_interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        import torch

        if options.device == "cpu":
            torch.set_num_threads(max(1, available_cores() // len(options.devices)))
        messages.send(("totals", encode(configuration, _SentProgress(messages), options)))
    except QeditError as error:
        messages.send(("error", (type(error), error.what, error.do)))
    except KeyboardInterrupt:
        pass  # the process that started it says so
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        messages.send(("error", (QeditError, text, "")))


def _interrupt_once(number: int, frame: object) -> None:
    """Ignore the next signals: a terminal's come twice, from it and from the starting process."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)
