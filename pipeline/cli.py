"""The commands, in the order of work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cache.errors import WrongUse
from .options import (
    PAIR_OPTIONS,
    device_option,
    dry_run_option,
    look_options,
    options_of_stages,
    pair_options,
    parted,
    shard_option,
    shared_options,
    workplace_options,
)
from .report import TerminalProgress, as_object, print_object
from .reporting import reporting, with_options

if TYPE_CHECKING:
    from ..stages.models.lora_file import Style


class InOrderOfWork(click.Group):
    """Lists commands as they were added: the order of work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["as_json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a wrong option is one JSON object too where `--json` stands."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if ctx.meta["as_json"]:
                said = {"error": error.format_message(), "do": "", "exit_code": error.exit_code}
                print_object(said)
            raise


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


def _run(
    names: tuple[str, ...],
    *,
    command: str,
    options: dict[str, dict[str, object]],
    dry_run: bool,
    **shared: Any,
) -> None:
    """Load the configuration, run stages, report; every command that runs stages ends here."""
    with reporting(**shared) as (progress, finish):
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


@main.command()
@shared_options
@dry_run_option
@pair_options
@look_options
def pair(**given: Any) -> None:
    """Match targets, references and captions; decide geometry; find what is wrong."""
    options, shared = parted(given, PAIR_OPTIONS)
    _run(("pair",), command="pair", options={"pair": options}, **shared)


@main.command("cache-vae")
@shared_options
@dry_run_option
@device_option
@shard_option
def cache_vae(device: str, shard: str | None, **shared: Any) -> None:
    """Encode targets and references with the VAE; only what is missing."""
    _run(
        ("cache-vae",),
        command="cache-vae",
        options={"cache-vae": {"device": device, "shard": shard}},
        **shared,
    )


@main.command("cache-embeds")
@shared_options
@dry_run_option
@device_option
@shard_option
def cache_embeds(device: str, shard: str | None, **shared: Any) -> None:
    """Encode references and captions with Qwen2.5-VL; only what is missing."""
    _run(
        ("cache-embeds",),
        command="cache-embeds",
        options={"cache-embeds": {"device": device, "shard": shard}},
        **shared,
    )


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
    options = options_of_stages(device, on_reject, max_rejected)
    _run(names, command="train", options=options, **shared)


@main.command()
@shared_options
@dry_run_option
@device_option
@pair_options
def run(device: str, on_reject: str, max_rejected: int, **shared: Any) -> None:
    """All stages in order, each doing only what is missing."""
    from .runner import ORDER

    _run(ORDER, command="run", options=options_of_stages(device, on_reject, max_rejected), **shared)


@main.command()
@shared_options
def status(**shared: Any) -> None:
    """What is there, what is missing, what was made by other settings."""
    with reporting(**shared) as (progress, finish):
        from .status import status_of

        configuration = _configuration(progress, **shared)
        found = status_of(configuration)
        found.next_command = with_options(found.next_command, **shared)
        for line in found.lines():
            progress.say(line)
        finish(found.as_object())


@main.command()
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
    """Hold everything that was made against its checksums; name the samples that are hurt."""
    with reporting(**shared) as (progress, finish):
        from .verifying import verify as verify_all

        configuration = _configuration(progress, **shared)
        found = verify_all(configuration, progress, share=sample / 100, drops=drop)
        if not found.dropped:
            found.refuse()
        for line in found.lines:
            progress.say(f"Dropped: {line}")
        progress.say(f"verify  {found.parts} parts, {len(found.lines)} damaged")
        finish(found.as_object())


@main.command()
@shared_options
@click.option("--compact", is_flag=True, help="Join small parts into few as well.")
@click.option("--yes", is_flag=True, help="Do it; without this, what would go is shown.")
def gc(compact: bool, yes: bool, **shared: Any) -> None:
    """Remove cached rows that no pairs table and no run names any more."""
    with reporting(**shared) as (progress, finish):
        from .cleaning import clear, collect
        from .report import size

        found = collect(_configuration(progress, **shared), compact=compact)
        for line in found.lines():
            progress.say(line)
        said, found.removed = found.as_object(), yes
        if yes:
            clear(found)
        else:
            progress.say(f"{size(said['bytes'])} in all. To remove it: `qedit gc --yes`.")
        finish({**said, "removed": yes})


@main.command()
@shared_options
@click.option("--yes", is_flag=True, help="Do it; without this, the locks are shown.")
def unlock(yes: bool, **shared: Any) -> None:
    """Remove locks that were left by processes which run no more.

    Those of this machine's dead processes go by themselves. Of another machine only you can
    know: end its processes first.
    """
    with reporting(**shared) as (progress, finish):
        from ..cache.atomic import remove
        from .cleaning import find_locks

        locks = find_locks(_configuration(progress, **shared))
        for path, holder in locks.here():
            progress.warn(f"{path} is held by {holder}, which is running: end it first.")
        for path, holder in locks.free():
            progress.say(f"{path}: {holder}")
            if yes:
                remove(path)
        if locks.free() and not yes:
            progress.say("To remove them: `qedit unlock --yes`.")
        paths = [str(path) for path, _ in locks.free()]
        finish({"stage": "unlock", "locks": paths, "removed": yes})


@main.command()
@click.argument("sample")
@shared_options
@click.option("--caption", default=0, show_default=True, help="Which of its captions.")
@click.option(
    "--export", type=click.Path(path_type=Path, dir_okay=False), help="Write a safetensors file."
)
def inspect(sample: str, caption: int, export: Path | None, **shared: Any) -> None:
    """One sample exactly as training sees it. SAMPLE is its target's path in the dataset."""
    with reporting(**shared) as (progress, finish):
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
@click.argument("lora", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["diffusers", "comfyui", "kohya"]),
    required=True,
    help="Whose names the tensors get.",
)
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The file to write.")
@workplace_options
def export(lora: Path, style: Style, to: Path, **shared: Any) -> None:
    """Write a LoRA as diffusers, ComfyUI or kohya's tools name it.

    LORA is a file of any of these, or of names without a prefix, or a folder with a
    pytorch_lora_weights.safetensors. Alphas are kept for kohya, folded in for the others.
    """
    with reporting(**shared) as (progress, finish):
        from ..stages.export_lora import export_lora

        layers = len(export_lora(lora, to, style).layers)
        progress.say(f"Written: {to} ({layers} layers, for {style})")
        finish({"stage": "export", "format": style, "layers": layers, "where": str(to)})


@main.command("init")
@click.argument("targets", type=click.Path(path_type=Path))
@click.argument("references", type=click.Path(path_type=Path), nargs=-1, required=True)
@dry_run_option
@workplace_options
def init_files(targets: Path, references: tuple[Path, ...], dry_run: bool, **shared: Any) -> None:
    """Write config.json and multidatabackend.json for folders of pictures, after a look at them.

    TARGETS holds the edited pictures; each of REFERENCES holds what they were made from,
    under the same names.
    """
    with reporting(**shared) as (progress, finish):
        from .first_files import write_first_files

        finish(write_first_files(targets, references, progress, dry_run=dry_run))


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
    with reporting(folder=None, as_json=as_json, verbose=0, quiet=quiet, debug=debug) as (
        progress,
        finish,
    ):
        from .demo import run_demo

        finish(run_demo(folder, progress))
