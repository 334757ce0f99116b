"""Runs `qedit` with slow encoders, as a process of its own to send signals to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from qedit.cache.store.store import Store
from qedit.pipeline.__main__ import main
from qedit.stages.encoding import pipeline, work_split

SLOW_SECONDS = 60.0


def slow_down(after: int, marker: Path, *, writes: bool) -> None:
    """From the `after`-th encoding (or part written) on, take minutes; `marker` says so."""
    where: Any = Store if writes else pipeline.EncodingPipeline
    name = "add" if writes else "_encode"
    really, count = getattr(where, name), 0

    def slowly(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            marker.touch()
            time.sleep(SLOW_SECONDS)
        return really(*args, **options)

    setattr(where, name, slowly)


if __name__ == "__main__":
    what, after, marker, *words = sys.argv[1:]
    work_split.PART_BYTES = 1
    slow_down(int(after), Path(marker), writes=what == "writes")
    sys.argv[1:] = words
    main()
