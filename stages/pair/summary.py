"""Account: what the tables say, in numbers and sentences."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import NotComplete
from ..samples.schema import Rejection
from ..samples.table import read_rejections
from ..stage import Outcome
from .changes import Changes
from .checks import in_words
from .scan import printable
from .wanted_samples import Plan

STAGE = "pair"
SHOWN_PATHS = 3  # of each reason


@dataclass(frozen=True)
class Foreseen:
    """What a run would do that may write and decode nothing."""

    plans: Sequence[Plan]
    pictures_to_decode: int

    def outcome(self, where: Path, *, started: float) -> Outcome:
        """The same in numbers and sentences."""
        wanted = sum(len(plan.wanted) for plan in self.plans)
        rejections = [row for plan in self.plans for row in plan.rejections]
        failed = len({row.sample for row in rejections})
        counts = Counter(row.reason for row in rejections)
        lines = [f"{self.pictures_to_decode} pictures would be decoded"]
        return Outcome(
            stage=STAGE,
            wanted=wanted + failed,
            kept=wanted if not self.pictures_to_decode else 0,
            computed=0,
            failed=failed,
            seconds=time.monotonic() - started,
            where=str(where),
            unit="samples",
            facts={
                "pictures_to_decode": self.pictures_to_decode,
                "rejected": dict(sorted(counts.items())),
            },
            lines=(*lines, *rejected_lines(rejections)),
        )


def outcome_of(
    manifests: Sequence[dict[str, Any]],
    changes: Changes,
    *,
    rejections: Sequence[Rejection],
    where: Path,
    started: float,
    pages: Sequence[Path] = (),
) -> Outcome:
    """What the tables of this run hold, how they differ from the last ones, and their pages.

    Args:
        rejections: those to show the first of, with their counts.
    """
    samples = sum(manifest["samples"] for manifest in manifests)
    rejected = sum(manifest["rejected_samples"] for manifest in manifests)
    reasons, warnings = Counter[str](), Counter[str]()
    for manifest in manifests:
        reasons.update(manifest["rejected"])
        warnings.update(manifest["warnings"])
    lines = list(changes.lines())
    if warnings:
        lines.append(f"warnings: {in_words(sorted(warnings.items()))}")
    lines += rejected_lines(rejections)
    return Outcome(
        stage=STAGE,
        wanted=samples + rejected,
        kept=samples - changes.computed,
        computed=changes.computed,
        failed=rejected,
        seconds=time.monotonic() - started,
        where=str(where),
        unit="samples",
        facts={
            "rejected": dict(sorted(reasons.items())),
            "warnings": dict(sorted(warnings.items())),
            **changes.counts(),
            "reports": [str(page) for page in pages],
        },
        lines=tuple(lines),
    )


def refuse_unaccepted(
    manifests: Sequence[dict[str, Any]], folders: Sequence[Path], outcome: Outcome
) -> None:
    """Stop where samples were rejected and nobody accepted that, or where none is left.

    Raises:
        NotComplete: counts and the first paths of each reason, where the rest is listed, and how
            to go on without them.
    """
    rejections = [
        row
        for folder, manifest in zip(folders, manifests, strict=True)
        if not manifest["accepted"] or not manifest["samples"]
        for row in read_rejections(folder)
    ]
    if not rejections:
        return
    what = f"{outcome.failed} of {outcome.wanted} samples are rejected."
    if all(manifest["samples"] for manifest in manifests):
        do = "Mend the files and run `qedit pair` again, or go on without them: "
        do += f"`qedit pair --on-reject skip` or `--max-rejected {outcome.failed}`."
    else:
        do = "Nothing is left of a dataset: mend the files, then run `qedit pair` again."
    tables = ", ".join(
        str(folder / manifest["rejected_table"])
        for folder, manifest in zip(folders, manifests, strict=True)
        if manifest["rejected_samples"]
    )
    raise NotComplete("\n".join([what, *rejected_lines(rejections), f"All of them: {tables}"]), do)


def rejected_lines(rejections: Sequence[Rejection]) -> Iterator[str]:
    """Each reason with its count, and under it the first paths."""
    rows: dict[str, list[Rejection]] = {}
    for row in rejections:
        rows.setdefault(row.reason, []).append(row)
    for reason, found in sorted(rows.items()):
        yield f"rejected: {in_words([(reason, len(found))])}"
        for row in found[:SHOWN_PATHS]:
            yield f"    {row.dataset}: {printable(f'{row.path}: {row.detail}')}"
        if len(found) > SHOWN_PATHS:
            yield f"    and {len(found) - SHOWN_PATHS} more"
