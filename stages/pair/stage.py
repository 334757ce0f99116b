"""pair: from picture folders to the pairs tables."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...cache.files.atomic import sweep
from ...cache.files.lock import writer_lock
from ...config.configuration import Configuration
from ..models.checkpoint.checkpoint import flavour_of
from ..pictures.images import quiet_decoding
from ..samples.recipe import folders_of
from ..samples.table import (
    accept_rejections,
    manifest_in,
    read_rejections,
    samples_before,
    table_folder,
    used_main_datasets,
    whole_manifest_in,
    write_pairs,
)
from ..stage import Outcome, Progress
from ..stores.pins import pairs_pin, pin_places, write_pins
from ..stores.run import Run
from .acceptance import Judged, judge, unknown_places
from .folders import Scans, digest_of, scan_all
from .page import PAGE_FILE, bring_up_to_date
from .picture_records import NOT_DECODED, PASSING_REASONS, Memory, PlacesArray
from .pictures import Task, look_at
from .scan import printable
from .summary import STAGE, Tally, foreseen, outcome_of, refuse_unaccepted
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
    options = _Options(
        dry_run=dry_run,
        most_rejected=math.inf if on_reject == "skip" else float(max_rejected),
        retry_rejected=retry_rejected,
        quick=quick,
        paranoid=paranoid,
    )
    done = _bring_tables_up_to_date(configuration, progress, options, started=started)
    if isinstance(done, Outcome):
        return done
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


def is_current(configuration: Configuration) -> bool:
    """Return whether the tables stand for the folders as they are now. Opens no picture.

    Raises:
        WrongUse: folders from which no pairs can be made.
    """
    inputs = digest_of(configuration, scan_all(configuration))
    return all(_stands(folder, inputs, quick=True) for folder in _folders(configuration))


@dataclass(frozen=True)
class _Options:
    """The options of a run, as in `run`; `most_rejected` samples are accepted without asking."""

    dry_run: bool
    most_rejected: float
    retry_rejected: bool
    quick: bool
    paranoid: bool


Written = tuple[list[dict[str, Any]], Counter[str]]
"""The manifests of all tables, and how many samples changed in which way."""


def _bring_tables_up_to_date(
    configuration: Configuration, progress: Progress, options: _Options, *, started: float
) -> Written | Outcome:
    """Return what the tables hold now, or, of a dry run, what would have to be done.

    What is held in memory of every file and sample is freed on the way out.
    """
    opened = Run(configuration)
    places = [configuration.pairs_folder(main) for main in opened.main_datasets]
    if not options.dry_run:
        pin_places(opened, places, pairs_pin(opened))
    scans = scan_all(configuration)
    for found in scans.values():
        for link in map(printable, found.skipped_links):
            progress.warn(f"{found.folder}: {link} leads to a folder already read, skipped")
    inputs = digest_of(configuration, scans)
    folders = _folders(configuration)
    again = options.retry_rejected or options.paranoid
    if not again and all(_stands(folder, inputs, quick=options.quick) for folder in folders):
        return _accept_standing(folders, options), Counter()
    plans = make_plans(configuration, flavour_of(configuration.settings), scans)
    _say_what_is_left_out(plans, scans, progress)
    memories = _memories(configuration, scans, options)
    unknown = unknown_places(plans, memories)
    if options.dry_run:
        count = sum(map(len, unknown.values()))
        return foreseen(plans, count, where=_root(configuration), started=started)
    with writer_lock(_root(configuration), doing=f"qedit {STAGE}"):
        for folder in (*folders, *(memory.path.parent for memory in memories.values())):
            sweep(folder)
        _look_at_all(unknown, memories, scans, progress=progress)
        judged = [judge(plan, memories) for plan in plans]
        written = _write(configuration, judged, memories, inputs=inputs, options=options)
        names = [place.name for place in places]
        write_pins(opened, opened.pairs_root, names, pairs_pin(opened))
        return written


def _stands(folder: Path, inputs: str, *, quick: bool) -> bool:
    """Return whether the table was made from these very files, and none of them may be fixed."""
    manifest = whole_manifest_in(folder)
    return (
        manifest is not None
        and manifest["inputs"] == inputs
        and PASSING_REASONS.isdisjoint(manifest["rejected"])
        and (quick or NOT_DECODED not in manifest["warnings"])
    )


def _accept_standing(folders: Sequence[Path], options: _Options) -> list[dict[str, Any]]:
    manifests = [manifest for folder in folders if (manifest := manifest_in(folder))]
    rejected = sum(manifest["rejected_samples"] for manifest in manifests)
    if options.dry_run or rejected > options.most_rejected:
        return manifests
    return [accept_rejections(folder) for folder in folders]


def _say_what_is_left_out(plans: Sequence[Plan], scans: Scans, progress: Progress) -> None:
    for name, found in scans.items():
        if found.others:
            kinds = (f"{count} {kind}" for kind, count in sorted(found.others.items()))
            progress.say(f"{name}: left out, no pictures by their names: {', '.join(kinds)}")
    for plan in plans:
        if plan.strange_captions:
            progress.warn(plan.strange_captions)


def _memories(configuration: Configuration, scans: Scans, options: _Options) -> dict[str, Memory]:
    memories = {}
    for dataset in configuration.datasets:
        if dataset.id in scans:
            files = scans[dataset.id].pictures
            folder = configuration.pairs_folder(dataset)
            memories[dataset.id] = Memory(folder, files, headers_suffice=options.quick)
    for memory in memories.values():
        if options.paranoid:
            memory.suspect_all()
        if options.retry_rejected:
            memory.forget_rejected()
    return memories


def _look_at_all(
    unknown: Mapping[str, PlacesArray],
    memories: Mapping[str, Memory],
    scans: Scans,
    *,
    progress: Progress,
) -> None:
    count = sum(map(len, unknown.values()))
    if not count:
        return
    tasks = (  # made one by one, since they may be millions
        Task(scans[name].folder, memories[name], int(place))
        for name, places in unknown.items()
        for place in places
    )
    with (
        quiet_decoding(),
        progress.bar(count, "looking at pictures", unit="picture") as advance,
    ):
        look_at(tasks, advance)


def _write(
    configuration: Configuration,
    judged: Sequence[Judged],
    memories: Mapping[str, Memory],
    *,
    inputs: str,
    options: _Options,
) -> Written:
    accept = sum(checked.rejected for checked in judged) <= options.most_rejected
    manifests, changes = [], Counter[str]()
    for checked in judged:
        main, folder = checked.plan.main, checked.plan.folder
        tally = Tally(samples_before(folder))
        copies = memories[main.id].copies_among(checked.target_places())
        manifests.append(
            write_pairs(
                folder,
                recipe=checked.plan.recipe,
                rows=tally.passing(checked.rows(copies)),
                rejections=checked.rejections,
                inputs=inputs,
                accept=accept,
                folders=folders_of(configuration, main),
            )
        )
        changes.update(tally.changes())
    return manifests, changes


def _folders(configuration: Configuration) -> list[Path]:
    flavour = flavour_of(configuration.settings)
    mains = used_main_datasets(configuration)
    return [table_folder(configuration, main, flavour) for main in mains]


def _pages(
    configuration: Configuration, folders: Sequence[Path], report: Path | None, progress: Progress
) -> list[Path]:
    """Bring the page of every table up to date; return where they are."""
    pages = []
    for main, folder in zip(used_main_datasets(configuration), folders, strict=True):
        page = folder / PAGE_FILE if report is None else report / f"{main.id}.html"
        if bring_up_to_date(page, configuration, main, folder):
            progress.say(f"report: {page}")
        pages.append(page)
    return pages


def _root(configuration: Configuration) -> Path:
    return Path(configuration.settings.cache_dir) / "pairs"
