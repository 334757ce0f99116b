"""Python's garbage collector in a run with millions of objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MANY_OBJECTS = 1_000_000


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Switch the garbage collector off in the block, which makes millions of objects.

    None of them is garbage, and looking for some would take the longest. If there are many, they
    are frozen: the collector never looks at them again in this process.
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
