"""How long each row is expected to take, so that what matters is known to fit into the time."""

from __future__ import annotations

from collections.abc import Sequence

from cases import Asked, Session
from shapes import FULL, Case, sizes_of

from qedit.stages.models.memory_estimate.memory import step_flops

TERAFLOPS = 350  # of a step on a large GPU of today
STOCK_TAKES, QUANTO_TAKES = 1.4, 2.0  # times as long
# Beside the steps; a process imports what it needs while the one before it measures.
PROCESS_SECONDS = 3  # its context on the device, and its end
BASE_SECONDS = 7  # 20 billion random numbers, quantised
STREAMED_SECONDS = 15  # a base more, by way of the host
COMPILING_SECONDS = 45
OTHER_SECONDS = {"ceiling": 2, "cache-vae": 25, "cache-embeds": 25, "startup": 12}


def session_seconds(session: Session) -> float:
    """Of one process, its start included."""
    base = BASE_SECONDS if session.script == "step.py" else 0
    return PROCESS_SECONDS + base + sum(map(row_seconds, session.cases))


def row_seconds(asked: Asked) -> float:
    """Of one row, once its process and its base are there."""
    if asked.what in OTHER_SECONDS:
        return OTHER_SECONDS[asked.what]
    load = Case(asked.flavour, asked.references, 1024).load
    step = step_flops(sizes_of(FULL, asked.flavour), load) / (TERAFLOPS * 1e12)
    if asked.what == "stock":
        step *= QUANTO_TAKES if asked.precision == "int8" else STOCK_TAKES
    seconds = (1 + asked.steps) * step
    if asked.way.startswith("stream") or (asked.cap_gb and asked.cap_gb < 12):
        seconds = STREAMED_SECONDS + 1.5 * seconds
    if asked.compiled and asked.row.endswith("compiled") and asked.references == 1:
        seconds += COMPILING_SECONDS
    return seconds


def total_seconds(sessions: Sequence[Session]) -> float:
    """Of processes one after the other."""
    return sum(map(session_seconds, sessions))
