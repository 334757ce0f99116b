"""A summary of what `pair` did: what changed in the tables, and what is rejected and why."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.errors import NotComplete
from ..samples.sample import Sample
from ..samples.schema import Rejection
from ..samples.table import read_rejections
from ..stage import Outcome
from .checks import in_words
from .scan import printable
from .wanted_samples import Plan

STAGE = "pair"
SHOWN_PATHS = 3  # of each reason
CHANGES = ("added", "changed", "removed", "renamed")

Row = tuple[Sample, Sequence[str]]


class Tally:
    """A comparison of a table with the one before it, row by row, with three numbers a sample."""

    def __init__(self, before: Iterable[Sample]) -> None:
        self._before, self._after = array("q"), array("q")
        for sample in before:
            self._before.extend(_hashes(sample))

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hand `rows` on and count them."""
        for row in rows:
            self._after.extend(_hashes(row[0]))
            yield row

    def changes(self) -> Counter[str]:
        """Count the samples that the rows so far change; those not among them are gone.

        A renamed sample, which has another name for the same target and references, counts
        neither as added nor as removed.
        """
        before, after = (
            np.asarray(hashes).reshape(-1, 3) for hashes in (self._before, self._after)
        )
        _, stayed, stays = np.intersect1d(before[:, 0], after[:, 0], return_indices=True)
        gone, come = np.delete(before, stayed, axis=0), np.delete(after, stays, axis=0)
        renamed = int(np.isin(come[:, 2], gone[:, 2]).sum())
        return Counter(
            added=len(come) - renamed,
            changed=int((before[stayed, 1] != after[stays, 1]).sum()),
            removed=max(len(gone) - renamed, 0),
            renamed=renamed,
        )


def _hashes(sample: Sample) -> tuple[int, int, int]:
    """Hash a sample's name, all of it, and the content of its pictures."""
    content = (sample.target.digest, *(picture.digest for picture in sample.references))
    return hash(sample.name), hash(sample), hash(content)


def foreseen(
    plans: Sequence[Plan], pictures_to_decode: int, *, where: Path, started: float
) -> Outcome:
    """Describe what a run would do that may write and decode nothing."""
    wanted = sum(len(plan.wanted) for plan in plans)
    rejections = [row for plan in plans for row in plan.rejections]
    failed = len({row.sample for row in rejections})
    counts = Counter(row.reason for row in rejections)
    return Outcome(
        stage=STAGE,
        wanted=wanted + failed,
        kept=wanted if not pictures_to_decode else 0,
        computed=0,
        failed=failed,
        seconds=time.monotonic() - started,
        where=str(where),
        unit="samples",
        facts={"pictures_to_decode": pictures_to_decode, "rejected": dict(sorted(counts.items()))},
        lines=(f"{pictures_to_decode} pictures would be decoded", *rejected_lines(rejections)),
    )


def outcome_of(
    manifests: Sequence[dict[str, Any]],
    changes: Counter[str],
    *,
    rejections: Sequence[Rejection],
    where: Path,
    started: float,
    pages: Sequence[Path] = (),
) -> Outcome:
    """Return the contents of this run's tables, their changes since the last ones, and pages.

    Args:
        rejections: those of all tables; each reason is shown with its count and the first ones.
    """
    samples = sum(manifest["samples"] for manifest in manifests)
    rejected = sum(manifest["rejected_samples"] for manifest in manifests)
    reasons, warnings = Counter[str](), Counter[str]()
    for manifest in manifests:
        reasons.update(manifest["rejected"])
        warnings.update(manifest["warnings"])
    counts = {kind: changes[kind] for kind in CHANGES}
    computed = counts["added"] + counts["changed"] + counts["renamed"]
    lines = []
    if computed + counts["removed"] > counts["added"]:  # a table that was there is another now
        lines.append(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    if warnings:
        lines.append(f"warnings: {in_words(sorted(warnings.items()))}")
    return Outcome(
        stage=STAGE,
        wanted=samples + rejected,
        kept=samples - computed,
        computed=computed,
        failed=rejected,
        seconds=time.monotonic() - started,
        where=str(where),
        unit="samples",
        facts={
            "rejected": dict(sorted(reasons.items())),
            "warnings": dict(sorted(warnings.items())),
            **counts,
            "reports": [str(page) for page in pages],
        },
        lines=(*lines, *rejected_lines(rejections)),
    )


def refuse_unaccepted(
    manifests: Sequence[dict[str, Any]], folders: Sequence[Path], outcome: Outcome
) -> None:
    """Raise if samples were rejected and that is not accepted, or if none is left.

    Raises:
        NotComplete: with counts and the first paths of each reason, the tables that list the
            rest, and the option to go on without them.
    """
    tables = list(zip(folders, manifests, strict=True))
    rejections = [
        row
        for folder, manifest in tables
        if not manifest["accepted"] or not manifest["samples"]
        for row in read_rejections(folder)
    ]
    if not rejections:
        return
    what = f"{outcome.failed} of {outcome.wanted} samples are rejected."
    if all(manifest["samples"] for manifest in manifests):
        do = "Fix the files and run `qedit pair` again, or go on without them: "
        do += f"`qedit pair --on-reject skip` or `--max-rejected {outcome.failed}`."
    else:
        do = "Nothing is left of a dataset: fix the files, then run `qedit pair` again."
    listed = ", ".join(
        str(folder / manifest["rejected_table"])
        for folder, manifest in tables
        if manifest["rejected_samples"]
    )
    raise NotComplete("\n".join([what, *rejected_lines(rejections), f"All of them: {listed}"]), do)


def rejected_lines(rejections: Sequence[Rejection]) -> Iterator[str]:
    """Yield a line for each reason with its count, and under it the first paths."""
    rows: dict[str, list[Rejection]] = {}
    for row in rejections:
        rows.setdefault(row.reason, []).append(row)
    for reason, found in sorted(rows.items()):
        yield f"rejected: {in_words([(reason, len(found))])}"
        for row in found[:SHOWN_PATHS]:
            yield f"    {row.dataset}: {printable(f'{row.path}: {row.detail}')}"
        if len(found) > SHOWN_PATHS:
            yield f"    and {len(found) - SHOWN_PATHS} more"
