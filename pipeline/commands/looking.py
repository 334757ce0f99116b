"""The commands that show one thing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..terminal.options import device_option, dry_run_option, shared_options, word_among
from ..terminal.run_command import configuration_of, reporting, run_named

LISTED = 20


@click.command()
@click.argument("sample", required=False)
@shared_options
@click.option("--caption", default=0, show_default=True, help="Which of its captions.")
@click.option(
    "--as-previewed",
    is_flag=True,
    help="As previews show it: whole references, validation_negative_prompt.",
)
@click.option(
    "--export", type=click.Path(path_type=Path, dir_okay=False), help="Write a safetensors file."
)
def inspect(
    sample: str | None, caption: int, as_previewed: bool, export: Path | None, **shared: Any
) -> None:
    """Show one sample exactly as training sees it. SAMPLE is its target's path in the dataset.

    Without SAMPLE, list the samples.
    """
    name, shared["assignments"] = word_among((sample, *shared["assignments"]))
    with reporting(**shared) as (progress, finish):
        from ...stages.inspect_sample import inspect_sample, sample_names

        configuration = configuration_of(progress, **shared)
        if name is None:
            names = sample_names(configuration)
            for listed in names[:LISTED]:
                progress.say(listed)
            if len(names) > LISTED:
                progress.say(f"... {len(names)} in all")
            finish({"stage": "inspect", "samples": names, "where": ""})
            return
        inspected = inspect_sample(configuration, name, caption=caption, as_previewed=as_previewed)
        shapes = {what: list(tensor.shape) for what, tensor in inspected.tensors.items()}
        for what, shape in shapes.items():
            dtype = str(inspected.tensors[what].dtype).removeprefix("torch.")
            progress.say(f"{what:22} {dtype} {shape}")
        for what, fact in inspected.facts.items():
            progress.say(f"{what:22} {fact}")
        if inspected.note:
            progress.say(inspected.note)
        if export is not None:
            inspected.export(export)
            progress.say(f"Written: {export}")
        finish(
            {
                "stage": "inspect",
                "tensors": shapes,
                **inspected.facts,
                "note": inspected.note,
                "where": str(export) if export else "",
            }
        )


@click.command()
@click.argument("word", required=False)
@shared_options
def keys(word: str | None, **shared: Any) -> None:
    """Explain each key of the two files: its meaning, values, default, and what a change costs.

    WORD is a key, or a word in its name or meaning; without it, all keys are listed. With --config
    or example=NAME, the value in effect is shown, and where it came from.
    """
    word, shared["assignments"] = word_among((word, *shared["assignments"]))
    with reporting(**shared) as (progress, finish):
        from ..key_lines import found_keys, key_lines, values_in_effect

        given = any(shared[name] for name in ("config", "data", "sets", "assignments"))
        configuration = configuration_of(progress, dry_run=True, **shared) if given else None
        found, note = found_keys(word)
        if note:
            progress.say(f"{note}\n")
        objects = []
        for key in found:
            here = values_in_effect(key, configuration) if configuration else []
            progress.say("\n".join([*key_lines(key, here), ""]))
            objects.append({**asdict(key), "here": here})
        finish({"stage": "keys", "keys": objects, "note": note})


@click.command()
@shared_options
@dry_run_option
@device_option
@click.option("--step", type=click.IntRange(min=0), help="The pictures of this step alone.")
def preview(**given: Any) -> None:
    """Make pictures, sheets and the run's page of the previews that training has stored."""
    run_named("preview", **given)


@click.command()
@shared_options
@click.option(
    "--vram",
    "vram_gb",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Choose the settings for a device with so much memory.",
)
def plan(vram_gb: float | None, **shared: Any) -> None:
    """Estimate what a run will take in disk, device memory and time, before it is started.

    Reads the pairs tables, or before `qedit pair` the names and headers in the folders, and the
    model's config.json. Opens no weights.
    """
    with reporting(**shared) as (progress, finish):
        from ..plan.plan_words import plan_lines, plan_object
        from ..plan.planning import make_plan

        made = make_plan(configuration_of(progress, **shared), vram_gb=vram_gb)
        for line in plan_lines(made):
            progress.say(line)
        for folder in made.disk.full:
            progress.warn(f"the disk of {folder} has no room for what is to come.")
        finish(plan_object(made))
