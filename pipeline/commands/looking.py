"""The commands that show one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import shared_options
from ..reporting import reporting
from .running import configuration_of


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
