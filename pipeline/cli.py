"""The commands. The only place that prints, exits, or changes the working directory."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ..cache.errors import QeditError, WrongUse
from .report import TerminalProgress, as_object, print_object

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130


class InOrderOfWork(click.Group):
    """Lists commands as they were added: the order of work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=InOrderOfWork,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="qedit", message="qedit %(version)s")
def main() -> None:
    """Fine-tune Qwen-Image-Edit on pairs of pictures, one stage after the other.

    Every stage can be run again at any time and costs only what has changed.
    Start with `qedit demo`, or with your own two files:

      qedit run --config config.json --data multidatabackend.json
    """


def _stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


shared_options = _stacked(
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
dry_run_option = click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be done; write nothing."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
)
pair_options = _stacked(
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


def _run(
    names: tuple[str, ...],
    *,
    command: str,
    options: dict[str, dict[str, object]],
    dry_run: bool,
    **shared: Any,
) -> None:
    """Load the configuration, run stages, report; every command that runs stages ends here."""
    with _reporting(**shared) as (progress, finish):
        from .runner import run_stages

        configuration = _configuration(progress, dry_run=dry_run, **shared)
        outcomes = run_stages(names, configuration, progress, dry_run=dry_run, options=options)
        if len(outcomes) == 1:
            finish(as_object(outcomes[0]))
        else:
            finish({"stage": command, "stages": [as_object(outcome) for outcome in outcomes]})


def _configuration(
    progress: TerminalProgress,
    *,
    config: Path | None,
    data: Path | None,
    sets: tuple[str, ...],
    assignments: tuple[str, ...],
    tiny: bool,
    dry_run: bool = False,
    **_: Any,
) -> Any:
    from ..config.loading import load
    from .examples import example_named, tiny_sets

    example = example_named(assignments)
    if tiny and example is None:
        raise WrongUse(
            "--tiny goes with a shipped example.",
            "Type `qedit train --prepare example=qwen_image.edit-v1-lora --tiny`.",
        )
    if tiny and example is not None:
        sets = (*tiny_sets(example, progress, dry_run=dry_run), *sets)
    configuration = load(config, data, sets=sets, example=example)
    for note in configuration.notes:
        progress.warn(note)
    return configuration


@contextmanager
def _reporting(
    *,
    folder: Path | None,
    as_json: bool,
    verbose: int,
    quiet: bool,
    debug: bool,
    **_: Any,
) -> Iterator[tuple[TerminalProgress, Callable[[dict[str, Any]], None]]]:
    """Go to the folder, and turn whatever goes wrong into words and an exit code."""
    progress = TerminalProgress(as_json=as_json, verbosity=-1 if quiet else verbose)

    def finish(value: dict[str, Any]) -> None:
        if as_json:
            print_object(value)

    try:
        if folder is not None:
            _go_to(folder)
        yield progress, finish
    except QeditError as error:
        if debug:
            traceback.print_exc()
        finish({"error": error.what, "do": error.do, "exit_code": error.exit_code})
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        finish({"error": "interrupted", "do": "", "exit_code": INTERRUPTED})
        _fail(
            "Interrupted. What was finished is kept: the same command goes on from there.",
            INTERRUPTED,
            label="",
        )
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            _unexpected(error, debug=debug, finish=finish)
        what = f"{error.strerror}: {error.filename or 'while writing'}."
        do = "Make room or choose another cache_dir or output_dir; what was finished is kept."
        finish({"error": what, "do": do, "exit_code": 1})
        _fail(f"{what}\n{do}", 1)
    except Exception as error:
        _unexpected(error, debug=debug, finish=finish)


def _unexpected(error: Exception, *, debug: bool, finish: Callable[[dict[str, Any]], None]) -> None:
    if debug:
        traceback.print_exc()
    what = f"{type(error).__name__}: {error}"
    do = "This is a defect in qedit: run again with --debug and report what it prints."
    finish({"error": what, "do": do, "exit_code": 1})
    _fail(f"{what}\n{do}", 1)


def _fail(text: str, exit_code: int, *, label: str = "Error: ") -> None:
    click.echo(f"{label}{text}", err=True)
    sys.exit(exit_code)


def _go_to(folder: Path) -> None:
    if not folder.is_dir():
        raise WrongUse(f"There is no folder {folder} (-C).", f"Make it: mkdir -p {folder}")
    os.chdir(folder)


@main.command()
@shared_options
@dry_run_option
@pair_options
def pair(on_reject: str, max_rejected: int, **shared: Any) -> None:
    """Match targets with references and captions; decide every geometry; find what is wrong."""
    options: dict[str, object] = {"on_reject": on_reject, "max_rejected": max_rejected}
    _run(("pair",), command="pair", options={"pair": options}, **shared)


@main.command("cache-vae")
@shared_options
@dry_run_option
@device_option
def cache_vae(device: str, **shared: Any) -> None:
    """Encode targets and references with the VAE; only what is missing."""
    _run(
        ("cache-vae",),
        command="cache-vae",
        options={"cache-vae": {"device": device}},
        **shared,
    )


@main.command("cache-embeds")
@shared_options
@dry_run_option
@device_option
def cache_embeds(device: str, **shared: Any) -> None:
    """Encode references and captions with Qwen2.5-VL; only what is missing."""
    _run(
        ("cache-embeds",),
        command="cache-embeds",
        options={"cache-embeds": {"device": device}},
        **shared,
    )


def _all_options(device: str, on_reject: str, max_rejected: int) -> dict[str, dict[str, object]]:
    return {
        "pair": {"on_reject": on_reject, "max_rejected": max_rejected},
        "cache-vae": {"device": device},
        "cache-embeds": {"device": device},
        "train": {"device": device},
    }


@main.command()
@shared_options
@dry_run_option
@device_option
@pair_options
@click.option("--prepare", is_flag=True, help="Run the earlier stages first.")
def train(device: str, on_reject: str, max_rejected: int, prepare: bool, **shared: Any) -> None:
    """Train on the caches, and nothing else. Run the same command again to go on."""
    from .runner import ORDER

    names = ORDER if prepare else ("train",)
    options = _all_options(device, on_reject, max_rejected)
    _run(names, command="train", options=options, **shared)


@main.command()
@shared_options
@dry_run_option
@device_option
@pair_options
def run(device: str, on_reject: str, max_rejected: int, **shared: Any) -> None:
    """All stages in order, each doing only what is missing."""
    from .runner import ORDER

    _run(ORDER, command="run", options=_all_options(device, on_reject, max_rejected), **shared)


@main.command()
@shared_options
def status(**shared: Any) -> None:
    """What is there, what is missing, what was made by other settings."""
    with _reporting(**shared) as (progress, finish):
        from .status import status_of

        configuration = _configuration(progress, **shared)
        found = status_of(configuration)
        for line in found.lines():
            progress.say(line)
        finish(found.as_object())


@main.command()
@click.argument("sample")
@shared_options
@click.option("--caption", default=0, show_default=True, help="Which of its captions.")
@click.option(
    "--export", type=click.Path(path_type=Path, dir_okay=False), help="Write a safetensors file."
)
def inspect(sample: str, caption: int, export: Path | None, **shared: Any) -> None:
    """One sample exactly as training sees it. SAMPLE is its target's path in the dataset."""
    with _reporting(**shared) as (progress, finish):
        from ..stages.inspect_sample import inspect_sample

        configuration = _configuration(progress, **shared)
        inspected = inspect_sample(configuration, sample, caption=caption)
        shapes = {name: list(tensor.shape) for name, tensor in inspected.tensors.items()}
        for name, shape in shapes.items():
            dtype = str(inspected.tensors[name].dtype).removeprefix("torch.")
            progress.say(f"{name:22} {dtype} {shape}")
        for name, fact in inspected.facts.items():
            progress.say(f"{name:22} {fact}")
        if export is not None:
            inspected.export(export)
            progress.say(f"Written: {export}")
        finish(
            {
                "stage": "inspect",
                "tensors": shapes,
                **inspected.facts,
                "where": str(export) if export else "",
            }
        )


@main.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("qedit-demo"),
    show_default=True,
    help="Where to work.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what is wrong.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def demo(folder: Path, as_json: bool, quiet: bool, debug: bool) -> None:
    """The whole chain on a tiny model: pictures become a LoRA, in minutes, on a CPU."""
    with _reporting(folder=None, as_json=as_json, verbose=0, quiet=quiet, debug=debug) as (
        progress,
        finish,
    ):
        from .demo import run_demo

        finish(run_demo(folder, progress))
