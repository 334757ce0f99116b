"""Memory of a run with millions of Python objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MANY_OBJECTS = 1_000_000


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Millions of objects are made and none is garbage: looking for some would take the longest.

    Where there are many, they are left alone from then on.
    """
    was_on = gc.isenabled()
    before = gc.get_count()[0]
    gc.disable()
    try:
        yield
        if gc.get_count()[0] - before > MANY_OBJECTS:
            gc.freeze()
    finally:
        if was_on:
            gc.enable()
