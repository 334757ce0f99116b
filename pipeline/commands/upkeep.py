"""The commands that look after what was made."""

from __future__ import annotations

from typing import Any

import click

from ..terminal.options import shared_options
from ..terminal.run_command import configuration_of, reporting, with_options


@click.command()
@shared_options
def status(**shared: Any) -> None:
    """Show what is there, what is missing, and what was made by other settings.

    Where there are several datasets, each has a line for every kind of rows, with those of its
    references; a row that two of them want is counted for both, and once in all.
    """
    with reporting(**shared) as (progress, finish):
        from ...stages.stores.run import Run
        from ..upkeep.status import status_of

        configuration = configuration_of(progress, **shared)
        found = status_of(Run(configuration))
        found.next_command = with_options(found.next_command, **shared)
        for line in found.lines():
            progress.say(line)
        finish(found.as_object())


@click.command()
@shared_options
@click.option(
    "--sample",
    type=click.FloatRange(0, 100, min_open=True),
    default=100.0,
    metavar="P",
    help="Read P percent of the rows, drawn anew every time.",
)
@click.option("--drop", is_flag=True, help="Give up what is damaged, so that it is made anew.")
def verify(sample: float, drop: bool, **shared: Any) -> None:
    """Check everything that was made against its checksums; name the affected samples."""
    with reporting(**shared) as (progress, finish):
        from ...stages.stores.run import Run
        from ..upkeep.verify import verify as verify_all

        configuration = configuration_of(progress, **shared)
        found = verify_all(Run(configuration), progress, share=sample / 100, drops=drop)
        if not found.dropped:
            found.refuse()
        for line in found.dropped_lines():
            progress.say(line)
        progress.say(f"verify  {found.parts} parts, {len(found.lines)} damaged")
        finish(found.as_object())


@click.command()
@shared_options
@click.option("--compact", is_flag=True, help="Join small parts into few as well.")
@click.option("--yes", is_flag=True, help="Do it; without this, what would go is shown.")
def gc(compact: bool, yes: bool, **shared: Any) -> None:
    """Remove cached rows that no pairs table and no run needs."""
    with reporting(**shared) as (progress, finish):
        from ...stages.stores.run import Run
        from ..terminal.output import size
        from ..upkeep.caches import Caches
        from ..upkeep.collect import Removables, collect, remove_unused

        run = Run(configuration_of(progress, **shared))

        def show(found: Removables) -> None:
            for line in (*found.lines(), *found.left_lines()):
                progress.say(line)

        if yes:
            found = remove_unused(run, compact=compact, show=show)
        else:
            found = collect(Caches(run), compact=compact)
            show(found)
        command = "qedit gc --compact --yes" if compact else "qedit gc --yes"
        if not found.found:
            progress.say("Nothing to remove.")
        elif yes:
            progress.say(f"Done: {size(found.count_bytes)} removed.")
        else:
            progress.say(f"{size(found.count_bytes)} in all. To do it: `{command}`.")
        finish({**found.as_object(), "removed": yes})


@click.command()
@shared_options
@click.option("--yes", is_flag=True, help="Do it; without this, the locks are shown.")
def unlock(yes: bool, **shared: Any) -> None:
    """Remove stale locks: those of processes that no longer run.

    Dead processes of this machine need no unlocking: the next process takes their locks over.
    Whether a process of another machine still runs cannot be known here: end it first.
    """
    with reporting(**shared) as (progress, finish):
        from ...cache.files.atomic import remove
        from ...cache.files.owner import lives_here
        from ...stages.stores.run import Run
        from ..upkeep.caches import Caches
        from ..upkeep.unlock import find_locks

        found = find_locks(Caches(Run(configuration_of(progress, **shared))))
        here = [(path, holder) for path, holder in found if lives_here(holder.owner)]
        free = [one for one in found if one not in here]
        for path, holder in here:
            progress.warn(f"{path} is held by {holder}, which is running: end it first.")
        for path, holder in free:
            progress.say(f"{path}: {holder}")
            if yes:
                remove(path)
        if free:
            progress.say("Removed." if yes else "To remove them: `qedit unlock --yes`.")
        elif not here:
            progress.say("No locks.")
        finish({"stage": "unlock", "locks": [str(path) for path, _ in free], "removed": yes})
