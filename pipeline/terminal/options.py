"""Options that commands share, stacked on them as values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that puts `options` on a command, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


workplace_options = stacked(
    click.option(
        "-C", "folder", type=PATH, help="Work in this folder; relative paths start there."
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
    click.option("-v", "--verbose", count=True, help="Say more of what stages did."),
    click.option("-q", "--quiet", is_flag=True, help="Say only what is wrong."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)
shared_options = stacked(
    click.argument("assignments", nargs=-1, metavar="[example=NAME]"),
    click.option("--config", type=PATH, help="The file config.json."),
    click.option("--data", type=PATH, help="The data file (multidatabackend.json)."),
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


def _whole_or_auto(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Return a whole number from 1, or None for "auto"."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a whole number from 1 nor auto.")
    return int(value)


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the names in "cuda:0,cuda:1"."""
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    if not all(names):
        raise click.BadParameter(f"{value!r} lacks a name; say, for example, cuda:0,cuda:1.")
    return names


def _batch_size(what: str, things: str) -> Callable[[Command], Command]:
    return click.option(
        f"--{what}-batch-size",
        callback=_whole_or_auto,
        metavar="N|auto",
        default="auto",
        show_default=True,
        help=f"How many {things} are encoded together; auto: as many as fit.",
    )


ways_options = stacked(
    device_option,
    click.option(
        "--devices",
        callback=_names,
        metavar="A,B,...",
        help="Encode on these devices at once: cuda:0,cuda:1.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Threads that read pictures.  [default: by the number of cores]",
    ),
)
vae_batch_option = _batch_size("vae", "pictures")
text_batch_option = _batch_size("text", "reference sets")
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
retry_option = click.option(
    "--retry-rejected", is_flag=True, help="Look again at what was rejected before."
)
look_options = stacked(
    retry_option,
    click.option("--quick", is_flag=True, help="Read headers only; the next run decodes in full."),
    click.option("--paranoid", is_flag=True, help="Read every file again, changed or not."),
    click.option(
        "--report",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for the HTML reports, one a dataset.  [default: beside the tables]",
    ),
    click.option("--no-report", is_flag=True, help="Make no HTML report."),
)
_ACCEPTANCE = ("on_reject", "max_rejected")
_ENCODING = (*_ACCEPTANCE, "shard", "retry_rejected")
_DEVICES = ("device", "devices", "workers", "vae_batch_size", "text_batch_size")
# Which options each stage takes, where its command has them.
_OF_STAGE = {
    "pair": (*_ACCEPTANCE, "retry_rejected", "quick", "paranoid", "report", "no_report"),
    "cache-vae": _ENCODING,
    "cache-embeds": _ENCODING,
    "cache-base": ("device",),
    "train": ("device",),
    "preview": ("device", "step"),
}


def options_of(stage: str, given: Mapping[str, Any]) -> dict[str, object]:
    """Return those of the `given` options of a command that `stage` takes."""

    def chosen(names: Iterable[str]) -> dict[str, Any]:
        return {name: given[name] for name in names if name in given}

    options: dict[str, object] = chosen(_OF_STAGE[stage])
    if _OF_STAGE[stage] == _ENCODING:
        from ...stages.encoding.device_options import DeviceOptions

        options["options"] = DeviceOptions(**chosen(_DEVICES))
    return options


def word_among(words: Iterable[str | None]) -> tuple[str | None, tuple[str, ...]]:
    """Return the first of a command's words that is no `example=NAME`, and the others."""
    given = [word for word in words if word is not None]
    name = next((word for word in given if not word.startswith("example=")), None)
    if name is not None:
        given.remove(name)
    return name, tuple(given)
