"""pair: from picture folders to the pairs tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...cache.atomic import sweep
from ...cache.lock import writer_lock
from ...config.configuration import Configuration
from ..images import quiet_decoding
from ..models.checkpoint import flavour_of
from ..pair_rows import Rejection
from ..pairs_table import (
    accept_rejections,
    is_whole,
    manifest_in,
    read_table_in,
    table_folder,
    write_pairs,
)
from ..samples import Sample
from ..stage import Outcome, Progress
from .account import STAGE, outcome_of, refuse_unaccepted, rejected_lines
from .changes import Changes
from .checks import faults, sample_of, warnings_of
from .pictures import PASSING_REASONS, Memory, Task, look_at
from .plan import Plan, Scans, digest_of, make_plans, scan_all, used_datasets


@dataclass
class Judged:
    """The table of one main dataset, ready to be written."""

    plan: Plan
    samples: list[Sample]
    warnings: dict[str, tuple[str, ...]]
    rejections: list[Rejection]


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    on_reject: Literal["fail", "skip"] = "fail",
    max_rejected: int = 0,
    retry_rejected: bool = False,
) -> Outcome:
    """Bring the pairs tables of all datasets up to date with their folders.

    Args:
        dry_run: write nothing and decode nothing; say what would be done.
        on_reject: `fail` when more than `max_rejected` samples are rejected, or `skip` them.
        retry_rejected: decode pictures again that were rejected before.

    Raises:
        WrongUse: folders, names or captions from which no pairs can be made.
        NotComplete: too many samples are rejected. The tables are written all the same.
        Locked: another `qedit pair` is at work here.
    """
    started = time.monotonic()
    scans = scan_all(configuration)
    for found in scans.values():
        for link in found.skipped_links:
            progress.warn(f"{found.folder}: {link} leads to a folder already read, skipped")
    inputs = digest_of(configuration, scans)
    accept = _Acceptance(on_reject, max_rejected)
    folders = _folders(configuration)
    if not retry_rejected and all(_stands(folder, inputs) for folder in folders):
        manifests, changes = accept.of_standing(folders, dry_run=dry_run), Changes()
    else:
        plans = make_plans(configuration, flavour_of(configuration.settings), scans)
        if dry_run:
            return _foreseen(configuration, plans, scans, started=started)
        with writer_lock(_root(configuration), doing=f"qedit {STAGE}"):
            memories = _memories(configuration, scans)
            if retry_rejected:
                for memory in memories.values():
                    memory.forget_rejected()
            judged = _judge_all(plans, memories, scans, progress)
            manifests, changes = _write(judged, inputs=inputs, accept=accept)
    outcome = outcome_of(manifests, changes, where=_root(configuration), started=started)
    if not dry_run:
        refuse_unaccepted(manifests, folders, outcome)
    return outcome


@dataclass(frozen=True)
class _Acceptance:
    """What the user said about rejected samples, in this run."""

    on_reject: str
    max_rejected: int

    def accepts(self, rejected: int) -> bool:
        return self.on_reject == "skip" or rejected <= self.max_rejected

    def of_standing(self, folders: Sequence[Path], *, dry_run: bool) -> list[dict[str, Any]]:
        manifests = [manifest for folder in folders if (manifest := manifest_in(folder))]
        rejected = sum(manifest["rejected_samples"] for manifest in manifests)
        if dry_run or not self.accepts(rejected):
            return manifests
        return [accept_rejections(folder) for folder in folders]


def _folders(configuration: Configuration) -> list[Path]:
    flavour = flavour_of(configuration.settings)
    return [table_folder(configuration, main, flavour) for main in used_datasets(configuration)]


def _root(configuration: Configuration) -> Path:
    return Path(configuration.settings.cache_dir) / "pairs"


def _stands(folder: Path, inputs: str) -> bool:
    """Whether the table was made from these very files, and none of them may have healed."""
    manifest = manifest_in(folder)
    return (
        manifest is not None
        and manifest["inputs"] == inputs
        and is_whole(folder, manifest)
        and PASSING_REASONS.isdisjoint(manifest["rejected"])
    )


def _foreseen(
    configuration: Configuration, plans: Sequence[Plan], scans: Scans, *, started: float
) -> Outcome:
    memories = _memories(configuration, scans)
    tasks = _tasks(plans, memories, scans)
    wanted = sum(len(plan.wanted) for plan in plans)
    rejections = [row for plan in plans for row in plan.rejections]
    failed = len({row.sample for row in rejections})
    counts = Counter(row.reason for row in rejections)
    lines = [f"{len(tasks)} pictures would be decoded"]
    return Outcome(
        stage=STAGE,
        wanted=wanted + failed,
        kept=wanted if not tasks else 0,
        computed=0,
        failed=failed,
        seconds=time.monotonic() - started,
        where=str(_root(configuration)),
        unit="samples",
        facts={"pictures_to_decode": len(tasks), "rejected": dict(sorted(counts.items()))},
        lines=(*lines, *rejected_lines(counts, rejections)),
    )


def _judge_all(
    plans: Sequence[Plan], memories: Mapping[str, Memory], scans: Scans, progress: Progress
) -> list[Judged]:
    for folder in (
        *(plan.folder for plan in plans),
        *(memory.path.parent for memory in memories.values()),
    ):
        sweep(folder)
    tasks = _tasks(plans, memories, scans)
    if tasks:
        with (
            quiet_decoding(),
            progress.bar(len(tasks), "looking at pictures", unit="picture") as advance,
        ):
            look_at(tasks, advance)
    return [_judge(plan, memories) for plan in plans]


def _memories(configuration: Configuration, scans: Scans) -> dict[str, Memory]:
    folders = {
        dataset.id: configuration.pairs_folder(dataset) for dataset in configuration.datasets
    }
    memories = {name: Memory(folders[name]) for name in scans}
    for name, memory in memories.items():
        memory.keep_only(scans[name].pictures.values())
    return memories


def _tasks(plans: Iterable[Plan], memories: Mapping[str, Memory], scans: Scans) -> list[Task]:
    """Every picture of a match that nothing is remembered of, once."""
    files = dict.fromkeys(
        (dataset.id, file)
        for plan in plans
        for wanted in plan.wanted
        for dataset, file in zip(
            (plan.main, *wanted.terms.references),
            (wanted.match.target, *wanted.match.references),
            strict=True,
        )
        if file not in memories[dataset.id]
    )
    return [Task(scans[name].folder, memories[name], file) for name, file in files]


def _judge(plan: Plan, memories: Mapping[str, Memory]) -> Judged:
    judged = Judged(plan, [], {}, list(plan.rejections))
    seen = []
    for wanted in plan.wanted:
        facts = [memories[plan.main.id][wanted.match.target]]
        for dataset, file in zip(wanted.terms.references, wanted.match.references, strict=True):
            facts.append(memories[dataset.id][file])
        if wrong := faults(wanted.name, wanted.match, facts, wanted.terms):
            judged.rejections += wrong
            continue
        judged.samples.append(
            sample_of(wanted.name, wanted.match, facts, wanted.terms, captions=wanted.captions)
        )
        seen.append(facts)
    copies = Counter(
        digest for digest, _ in {(s.target.digest, s.target.path) for s in judged.samples}
    )
    for sample, facts in zip(judged.samples, seen, strict=True):
        if codes := warnings_of(sample, facts, copies):
            judged.warnings[sample.name] = codes
    judged.rejections.sort()
    return judged


def _write(
    judged: Sequence[Judged], *, inputs: str, accept: _Acceptance
) -> tuple[list[dict[str, Any]], Changes]:
    rejected = sum(len({row.sample for row in one.rejections}) for one in judged)
    manifests, changes = [], Changes()
    for one in judged:
        before = read_table_in(one.plan.folder)
        changes += Changes.between(before.samples if before else [], one.samples)
        manifests.append(
            write_pairs(
                one.plan.folder,
                recipe=one.plan.recipe,
                samples=one.samples,
                warnings=one.warnings,
                rejections=one.rejections,
                inputs=inputs,
                accept=accept.accepts(rejected),
            )
        )
    return manifests, changes
