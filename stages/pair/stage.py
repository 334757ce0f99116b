"""pair: from picture folders to the pairs tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...cache.files.atomic import sweep
from ...cache.files.lock import writer_lock
from ...config.configuration import Configuration
from ..models.checkpoint.checkpoint import flavour_of
from ..pictures.images import quiet_decoding
from ..samples.source_folders import folders_of
from ..samples.table import (
    accept_rejections,
    is_whole,
    manifest_in,
    read_rejections,
    samples_before,
    table_folder,
    used_main_datasets,
    write_pairs,
)
from ..stage import Outcome, Progress
from ..stores.pins import keep_pairs, note_use, pairs_places
from .acceptance import Judged, Unknown, judge, unknown_in
from .changes import Changes, Tally
from .folders import Scans, digest_of, scan_all
from .page import PAGE_FILE, bring_up_to_date, source_of
from .picture_records import NOT_DECODED, PASSING_REASONS, Memory
from .pictures import look_at
from .scan import printable
from .summary import STAGE, Foreseen, outcome_of, refuse_unaccepted
from .wanted_samples import Plan, make_plans


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    on_reject: Literal["fail", "skip"] = "fail",
    max_rejected: int = 0,
    retry_rejected: bool = False,
    quick: bool = False,
    paranoid: bool = False,
    report: Path | None = None,
    no_report: bool = False,
) -> Outcome:
    """Bring the pairs tables of all datasets up to date with their folders.

    Args:
        dry_run: write nothing and decode nothing; say what would be done.
        on_reject: `fail` when more than `max_rejected` samples are rejected, or `skip` them.
        retry_rejected: decode pictures again that were rejected before.
        quick: read the headers of pictures only; the next run without it decodes them.
        paranoid: read every file again, whatever its size and time say.
        report: the folder for the HTML pages, one a dataset; beside its table when None.
        no_report: make none.

    Raises:
        WrongUse: folders, names or captions from which no pairs can be made.
        NotComplete: too many samples are rejected. The tables are written all the same.
        Locked: another `qedit pair` is at work here.
    """
    started = time.monotonic()
    accept = _Acceptance(on_reject, max_rejected)
    effort = _Effort(quick=quick, paranoid=paranoid, retry_rejected=retry_rejected)
    done = _brought_up_to_date(
        configuration, progress, accept=accept, effort=effort, dry_run=dry_run
    )
    if isinstance(done, Foreseen):
        return done.outcome(_root(configuration), started=started)
    manifests, changes = done
    folders = _folders(configuration)
    pages = [] if dry_run or no_report else _pages(configuration, folders, report, progress)
    outcome = outcome_of(
        manifests,
        changes,
        rejections=[row for folder in folders for row in read_rejections(folder)],
        where=_root(configuration),
        started=started,
        pages=pages,
    )
    if not dry_run:
        refuse_unaccepted(manifests, folders, outcome)
    return outcome


@dataclass(frozen=True)
class _Effort:
    """How hard to look at files that are remembered."""

    quick: bool
    paranoid: bool
    retry_rejected: bool


def _brought_up_to_date(
    configuration: Configuration,
    progress: Progress,
    *,
    accept: _Acceptance,
    effort: _Effort,
    dry_run: bool,
) -> tuple[list[dict[str, Any]], Changes] | Foreseen:
    """The manifests of all tables as they are now, and what changed; or what a run would do.

    What is held of every file and sample is let go on the way out.
    """
    if not dry_run:
        keep_pairs(configuration, lock=_root(configuration))
    scans = scan_all(configuration)
    for found in scans.values():
        for link in found.skipped_links:
            link = printable(link)
            progress.warn(f"{found.folder}: {link} leads to a folder already read, skipped")
    inputs = digest_of(configuration, scans)
    folders = _folders(configuration)
    again = effort.retry_rejected or effort.paranoid
    if not again and all(_stands(folder, inputs, quick=effort.quick) for folder in folders):
        return accept.of_standing(folders, dry_run=dry_run), Changes()
    plans = make_plans(configuration, flavour_of(configuration.settings), scans)
    _say_what_is_left_out(plans, scans, progress)
    memories = _memories(configuration, scans, effort=effort)
    unknown = unknown_in(plans, memories)
    if dry_run:
        return Foreseen(plans, len(unknown))
    with writer_lock(_root(configuration), doing=f"qedit {STAGE}"):
        for folder in (*folders, *(memory.path.parent for memory in memories.values())):
            sweep(folder)
        if unknown:
            _look_at_all(unknown, memories, scans, progress=progress)
        judged = [judge(plan, memories) for plan in plans]
        written = _write(configuration, judged, inputs=inputs, accept=accept)
        note_use(pairs_places(configuration), configuration)
        return written


def _say_what_is_left_out(plans: Sequence[Plan], scans: Scans, progress: Progress) -> None:
    for name, found in scans.items():
        if found.others:
            kinds = (f"{count} {kind}" for kind, count in sorted(found.others.items()))
            progress.say(f"{name}: left out, no pictures by their names: {', '.join(kinds)}")
    for plan in plans:
        if plan.strange_captions:
            progress.warn(plan.strange_captions)


def is_current(configuration: Configuration) -> bool:
    """Whether the tables stand for the folders as they are now. Opens no picture.

    Raises:
        WrongUse: folders from which no pairs can be made.
    """
    inputs = digest_of(configuration, scan_all(configuration))
    return all(_stands(folder, inputs, quick=True) for folder in _folders(configuration))


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
    return [
        table_folder(configuration, main, flavour) for main in used_main_datasets(configuration)
    ]


def _pages(
    configuration: Configuration, folders: Sequence[Path], report: Path | None, progress: Progress
) -> list[Path]:
    """Bring the page of every table up to date; where they are."""
    pages = []
    for main, folder in zip(used_main_datasets(configuration), folders, strict=True):
        page = folder / PAGE_FILE if report is None else report / f"{main.id}.html"
        if bring_up_to_date(page, source_of(configuration, main, folder)):
            progress.say(f"report: {page}")
        pages.append(page)
    return pages


def _root(configuration: Configuration) -> Path:
    return Path(configuration.settings.cache_dir) / "pairs"


def _stands(folder: Path, inputs: str, *, quick: bool) -> bool:
    """Whether the table was made from these very files, and none of them may have healed."""
    manifest = manifest_in(folder)
    return (
        manifest is not None
        and manifest["inputs"] == inputs
        and is_whole(folder, manifest)
        and PASSING_REASONS.isdisjoint(manifest["rejected"])
        and (quick or NOT_DECODED not in manifest["warnings"])
    )


def _look_at_all(
    unknown: Unknown, memories: Mapping[str, Memory], scans: Scans, *, progress: Progress
) -> None:
    with (
        quiet_decoding(),
        progress.bar(len(unknown), "looking at pictures", unit="picture") as advance,
    ):
        look_at(unknown.tasks(memories, scans), advance)


def _memories(configuration: Configuration, scans: Scans, *, effort: _Effort) -> dict[str, Memory]:
    folders = {
        dataset.id: configuration.pairs_folder(dataset) for dataset in configuration.datasets
    }
    memories = {
        name: Memory(folders[name], found.pictures, headers_suffice=effort.quick)
        for name, found in scans.items()
    }
    for memory in memories.values():
        if effort.paranoid:
            memory.suspect_all()
        if effort.retry_rejected:
            memory.forget_rejected()
    return memories


def _write(
    configuration: Configuration, judged: Sequence[Judged], *, inputs: str, accept: _Acceptance
) -> tuple[list[dict[str, Any]], Changes]:
    rejected = sum(len({row.sample for row in one.rejections}) for one in judged)
    manifests, changes = [], Changes()
    for one in judged:
        tally = Tally(samples_before(one.plan.folder))
        manifests.append(
            write_pairs(
                one.plan.folder,
                recipe=one.plan.recipe,
                rows=tally.passing(one.rows()),
                rejections=one.rejections,
                inputs=inputs,
                accept=accept.accepts(rejected),
                folders=folders_of(configuration, one.plan.main),
            )
        )
        changes += tally.changes()
    return manifests, changes
