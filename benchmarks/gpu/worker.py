"""How a script of this folder is told what to measure, and how it answers.

    python benchmarks/gpu/step.py --small --device cpu --cases '[{"row": "one"}]'

A row of JSON is printed for each case, in their order, also for one that failed: it says why.
With `--wait` nothing touches the device before a line comes in: a process that is started
ahead has imported everything by then.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from typing import Any

from cases import READY, Asked

Measure = Callable[[Asked], dict[str, Any]]


def arguments(about: str | None, *, default: list[Asked]) -> argparse.Namespace:
    """What was asked for; `cases` are of the class `Asked`."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", help="JSON: a list of objects, see cases.Asked")
    parser.add_argument("--small", action="store_true", help="a small model, to try the harness")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--edge", type=int, default=0, help="of a picture; 0: 1024, small 64")
    parser.add_argument("--wait", action="store_true", help="for a line on standard input")
    given = parser.parse_args()
    given.edge = given.edge or (64 if given.small else 1024)
    told = [Asked(**one) for one in json.loads(given.cases)] if given.cases else default
    given.cases = told
    return given


def answer(given: argparse.Namespace, measure: Measure) -> None:
    """Measure every case and print what came of it."""
    if given.wait:
        print(READY, flush=True)
        sys.stdin.readline()
    for asked in given.cases:
        try:
            said = measure(asked)
        except Exception as error:  # a row says why it is empty, and the others stand
            words = " ".join(f"{type(error).__name__}: {error}".split())
            said = {"error": words[:400]}
        print(json.dumps({**asked.as_object(), **said}), flush=True)
        gc.collect()
