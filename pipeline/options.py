"""Options that commands share, stacked on them as values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


workplace_options = stacked(
    click.option(
        "-C",
        "folder",
        type=click.Path(path_type=Path),
        help="Work in this folder; relative paths start there.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
    click.option("-v", "--verbose", count=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="Say only what is wrong."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)
shared_options = stacked(
    click.argument("assignments", nargs=-1, metavar="[example=NAME]"),
    click.option("--config", type=click.Path(path_type=Path), help="The file config.json."),
    click.option(
        "--data", type=click.Path(path_type=Path), help="The data file (multidatabackend.json)."
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of config.json, or data.<dataset id>.<key>. Repeatable.",
    ),
    click.option(
        "--tiny", is_flag=True, help="With example=NAME: a tiny model and the demo's pictures."
    ),
    workplace_options,
)
dry_run_option = click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be done; write nothing."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
)
shard_option = click.option(
    "--shard", metavar="I/N", help="Do the I-th of N equal shares of what is missing."
)
pair_options = stacked(
    click.option(
        "--on-reject",
        type=click.Choice(["fail", "skip"]),
        default="fail",
        show_default=True,
        help="What to do when samples are rejected.",
    ),
    click.option(
        "--max-rejected",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="How many rejected samples are fine.",
    ),
)


look_options = stacked(
    click.option("--retry-rejected", is_flag=True, help="Look again at what was rejected before."),
    click.option("--quick", is_flag=True, help="Read headers only; the next run decodes in full."),
    click.option("--paranoid", is_flag=True, help="Read every file again, changed or not."),
    click.option(
        "--report",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for the HTML reports, one a dataset.  [default: beside the tables]",
    ),
    click.option("--no-report", is_flag=True, help="Make no HTML report."),
)
PAIR_OPTIONS = (
    *("on_reject", "max_rejected", "retry_rejected", "quick", "paranoid"),
    *("report", "no_report"),
)


def parted(
    given: dict[str, Any], names: tuple[str, ...]
) -> tuple[dict[str, object], dict[str, Any]]:
    """The options called `names`, and the others."""
    own = {name: given[name] for name in names}
    return own, {name: value for name, value in given.items() if name not in own}


def options_of_stages(
    device: str, on_reject: str, max_rejected: int
) -> dict[str, dict[str, object]]:
    return {
        "pair": {"on_reject": on_reject, "max_rejected": max_rejected},
        "cache-vae": {"device": device},
        "cache-embeds": {"device": device},
        "cache-base": {"device": device},
        "train": {"device": device},
    }
