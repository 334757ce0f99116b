"""Owners: one running process, told apart from every other one there ever was.

A process number alone is used again sooner or later. With the host, the start of the machine
and the start of the process it is unique, and no clock is asked: a clock that jumps changes
nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """One process: `boot` identifies the start of its machine, `space` its process numbering.

    `started` is when the process began, in the words of its system (only ever compared).
    """

    host: str
    pid: int
    boot: str
    space: str
    started: str

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.boot}.{self.space}.{self.started}"


def owner_in(name: str) -> Owner | None:
    """Return the owner in a file name part made by `str(owner)`; None for other names."""
    found = re.fullmatch(r"([\w.-]+)-(\d+)-(\w+)\.(\w+)\.(\w+)", name)
    if found is None:
        return None
    host, pid, boot, space, started = found.groups()
    return Owner(host, int(pid), boot, space, started)


def this_process() -> Owner:
    """Return the running process; a forked child is another owner."""
    return _this_process(os.getpid())


@functools.lru_cache(maxsize=4)
def _this_process(pid: int) -> Owner:
    started = _started(pid)
    if not started:
        raise RuntimeError(f"process {pid} cannot tell when it was started")
    return Owner(_host(), pid, _boot(), _space(), started)


def is_dead(owner: Owner) -> bool:
    """Return whether `owner` has certainly ended; False when that cannot be known from here.

    Another host's processes, and those of another container, cannot be seen. Machines that
    share a folder must have different host names: a host that was started anew since is
    taken to have ended its processes.
    """
    if not can_be_asked(owner):
        return False
    return owner.boot != this_process().boot or not _runs(owner)


def can_be_asked(owner: Owner) -> bool:
    """Return whether this host and container can see if `owner` runs."""
    here = this_process()
    if owner.host != here.host:
        return False
    return owner.boot != here.boot or owner.space == here.space


def lives_here(owner: Owner) -> bool:
    """Return whether `owner` certainly runs, on this host."""
    return can_be_asked(owner) and not is_dead(owner)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "-", socket.gethostname()) or "localhost"


def _boot() -> str:
    """Return an id of this start of the machine; "0" where the system has none (macOS)."""
    boot_id = PROC / "sys/kernel/random/boot_id"
    return boot_id.read_text()[:8] if boot_id.exists() else "0"


def _space() -> str:
    """Return an id of this container's process numbering."""
    namespace = PROC / "self/ns/pid"
    return re.sub(r"\D", "", os.readlink(namespace)) if namespace.exists() else "0"


def _runs(owner: Owner) -> bool:
    """Return whether process `owner.pid` of this machine is still the one in `owner`."""
    started = _started(owner.pid)
    if started is not None:
        return started == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, which some machines do not show
    return True


def _started(pid: int) -> str | None:
    """Return the start time of process `pid`; "" if it has ended (zombie), None if unseen."""
    if not PROC.joinpath("self/stat").exists():
        return _started_by_ps(pid)
    try:
        text = PROC.joinpath(str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the second field is the program's name in parentheses and may itself hold anything
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _started_by_ps(pid: int) -> str | None:
    """Return the same from `ps`, on systems without /proc."""
    fields = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split(maxsplit=1)
    if len(fields) < 2:
        return None
    if fields[0].startswith("Z"):
        return ""
    return hashlib.sha256(fields[1].strip().encode()).hexdigest()[:12]
