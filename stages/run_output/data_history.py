"""The data of each step of a run, as its run.json and its checkpoints record it.

    "datasets": {"cats": {"pairs": 250, "digest": ..., "repeats": 0, ...}}   of the steps to come
    "history": [{"from_step": 1, "datasets": ...}, {"from_step": 501, "datasets": ...}]
    "tables": {"<digest of a dataset>": "<recipe>/pairs-<digest>.parquet"}   in its pairs folder

A run whose data have never changed has no history: its datasets decided every step. Runs of
earlier versions name no tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .run_file import read_run

Entry = Mapping[str, Any]
"""Some data, and their first step."""


def history_of(run: Mapping[str, Any]) -> list[Entry]:
    """Return the data of each step of `run`, those of the first steps first."""
    return list(run.get("history") or [{"from_step": 1, "datasets": run.get("datasets", {})}])


def with_history(run: Mapping[str, Any], history: Sequence[Entry]) -> dict[str, Any]:
    """Return `run` with the data of each step as in `history`."""
    changed = {"history": [*history]} if len(history) > 1 else {}
    rest = {name: value for name, value in run.items() if name != "history"}
    return {**rest, "datasets": history[-1]["datasets"], **changed}


def as_of(run: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return `run` as it was at `step`, without the data of later steps."""
    first, *later = history_of(run)
    return with_history(run, [first, *(entry for entry in later if entry["from_step"] <= step)])


def needed_tables(output_dir: Path, *, continues: bool) -> set[str]:
    """Return the former pairs tables that a checkpoint in `output_dir` needs to be resumed from.

    Args:
        continues: whether the run goes on when its data change, so that the last may be former.

    Raises:
        Damaged: its run.json cannot be read.
    """
    found = (path.parent.name for path in output_dir.glob("checkpoint-*/state.json"))
    steps = [int(name[11:]) for name in found if re.fullmatch(r"checkpoint-\d+", name)]
    run = read_run(output_dir) if steps else None
    history, tables = history_of(run or {}), (run or {}).get("tables", {})
    ends = [after["from_step"] - 1 for _, after in pairwise(history)]
    ends += [max(steps)] if steps and continues else []
    return {
        tables[facts["digest"]]
        for entry, end in zip(history, ends, strict=False)
        for facts in entry["datasets"].values()
        if min(steps) < end and facts["digest"] in tables
    }
