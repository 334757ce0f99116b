"""Account: what the tables say, in numbers and sentences."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import NotComplete
from ..pair_rows import Rejection
from ..pairs_table import read_rejections
from ..stage import Outcome
from .changes import Changes
from .checks import in_words
from .plan import Plan
from .scan import printable

STAGE = "pair"
SHOWN_REJECTIONS = 5


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
            lines=(*lines, *rejected_lines(counts, rejections)),
        )


def outcome_of(
    manifests: Sequence[dict[str, Any]],
    changes: Changes,
    *,
    where: Path,
    started: float,
    pages: Sequence[Path] = (),
) -> Outcome:
    """What the tables of this run hold, how they differ from the last ones, and their pages."""
    samples = sum(manifest["samples"] for manifest in manifests)
    rejected = sum(manifest["rejected_samples"] for manifest in manifests)
    reasons, warnings = Counter[str](), Counter[str]()
    for manifest in manifests:
        reasons.update(manifest["rejected"])
        warnings.update(manifest["warnings"])
    lines = list(changes.lines())
    if warnings:
        lines.append(f"warnings: {in_words(sorted(warnings.items()))}")
    if reasons:
        lines.append(f"rejected: {in_words(sorted(reasons.items()))}")
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
        NotComplete: counts, the first paths, where the rest is listed and how to accept it.
    """
    rejections = [
        row
        for folder, manifest in zip(folders, manifests, strict=True)
        if not manifest["accepted"] or not manifest["samples"]
        for row in read_rejections(folder)
    ]
    if not rejections:
        return
    counts = Counter(row.reason for row in rejections)
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
    what = "\n".join([what, *rejected_lines(counts, rejections), f"All of them: {tables}"])
    raise NotComplete(what, do)


def rejected_lines(counts: Counter[str], rejections: Sequence[Rejection]) -> list[str]:
    """Counts by reason, then the first paths."""
    if not rejections:
        return []
    lines = [in_words([one]) for one in sorted(counts.items())]
    for row in rejections[:SHOWN_REJECTIONS]:
        lines.append(f"  {row.dataset}: {printable(f'{row.path}: {row.reason}: {row.detail}')}")
    if len(rejections) > SHOWN_REJECTIONS:
        lines.append(f"  ... and {len(rejections) - SHOWN_REJECTIONS} more")
    return lines
