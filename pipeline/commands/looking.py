"""The commands that show one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import device_option, dry_run_option, shared_options
from ..reporting import reporting
from .running import configuration_of, run_named


@click.command()
@click.argument("sample")
@shared_options
@click.option("--caption", default=0, show_default=True, help="Which of its captions.")
@click.option(
    "--export", type=click.Path(path_type=Path, dir_okay=False), help="Write a safetensors file."
)
def inspect(sample: str, caption: int, export: Path | None, **shared: Any) -> None:
    """One sample exactly as training sees it. SAMPLE is its target's path in the dataset."""
    with reporting(**shared) as (progress, finish):
        from ...stages.inspect_sample import inspect_sample

        configuration = configuration_of(progress, **shared)
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


@click.command()
@shared_options
@dry_run_option
@device_option
@click.option("--step", type=click.IntRange(min=0), help="The pictures of this step alone.")
def preview(device: str, step: int | None, **shared: Any) -> None:
    """Make pictures, sheets and the run's page of the previews that training has stored."""
    options: dict[str, dict[str, object]] = {"preview": {"device": device, "step": step}}
    run_named(("preview",), command="preview", options=options, **shared)


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
    """What a run will take in disk, device memory and time, before anything is started.

    Reads pairs tables, or before `qedit pair` the names and headers in the folders, and of the
    model its config.json. Opens no weights.
    """
    with reporting(**shared) as (progress, finish):
        from ..plan_words import plan_lines, plan_object
        from ..planning import make_plan

        made = make_plan(configuration_of(progress, **shared), vram_gb=vram_gb)
        for line in plan_lines(made):
            progress.say(line)
        for folder in made.disk.full:
            progress.warn(f"the disk of {folder} has no room for what is to come.")
        finish(plan_object(made))
