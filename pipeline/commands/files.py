"""The commands that make files for people: LoRAs in other forms, first files, a demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import WrongUse
from ..terminal.options import PATH, dry_run_option, workplace_options
from ..terminal.run_command import reporting

if TYPE_CHECKING:
    from ...stages.models.lora.lora_file import Style


@click.command()
@click.argument("lora", type=PATH)
@click.option(
    "--format",
    "style",
    type=click.Choice(["diffusers", "comfyui", "kohya"]),
    help="Whose names the tensors get.",
)
@click.option("--merge", is_flag=True, help="Bake it into a transformer instead.")
@click.option(
    "--base",
    type=PATH,
    help="With --merge: the checkpoint it was trained on, or its transformer's folder.",
)
@click.option("--to", type=PATH, required=True, help="The file (or folder) to write.")
@workplace_options
def export(
    lora: Path, style: Style | None, merge: bool, base: Path | None, to: Path, **shared: Any
) -> None:
    """Write a LoRA as diffusers, ComfyUI or kohya's tools name it, or bake it into a transformer.

    LORA is a file of any of these, or of names without a prefix, or a folder with a
    pytorch_lora_weights.safetensors. Alphas are kept for kohya, folded in for the others.
    """
    with reporting(**shared) as (progress, finish):
        from ...stages.export_lora import export_lora, merge_lora, other_base_in_words

        if merge:
            if base is None or style is not None:
                raise WrongUse(
                    "--merge writes a transformer: it takes --base, and no --format.",
                    "Type `qedit export LORA --merge --base CHECKPOINT --to FOLDER`.",
                )
            layers = len(merge_lora(lora, base, to).layers)
            if other := other_base_in_words(lora, base):
                progress.warn(other)
            progress.say(f"Written: {to} (bfloat16, {layers} layers with the LoRA in them)")
            finish({"stage": "export", "merged": True, "layers": layers, "where": str(to)})
            return
        if style is None or base is not None:
            raise WrongUse(
                "Without --merge, export takes --format and no --base.",
                "Type `--format diffusers`, `comfyui` or `kohya`.",
            )
        layers = len(export_lora(lora, to, style).layers)
        progress.say(f"Written: {to} ({layers} layers, for {style})")
        finish({"stage": "export", "format": style, "layers": layers, "where": str(to)})


@click.command("init")
@click.argument("targets", type=PATH)
@click.argument("references", type=PATH, nargs=-1, required=True)
@dry_run_option
@workplace_options
def init_files(targets: Path, references: tuple[Path, ...], dry_run: bool, **shared: Any) -> None:
    """Write config.json and multidatabackend.json for folders of pictures, after a look at them.

    TARGETS holds the edited pictures; each of REFERENCES holds what they were made from,
    under the same names.
    """
    with reporting(**shared) as (progress, finish):
        from ..first_files import write_first_files

        finish(write_first_files(targets, references, progress, dry_run=dry_run))


@click.command()
@click.option(
    "--dir",
    "folder",
    type=PATH,
    default=Path("qedit-demo"),
    show_default=True,
    help="Where to work.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what is wrong.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def demo(folder: Path, as_json: bool, quiet: bool, debug: bool) -> None:
    """Run the whole chain on a tiny model: pictures become a LoRA, in minutes, on a CPU."""
    with reporting(folder=None, as_json=as_json, verbose=0, quiet=quiet, debug=debug) as (
        progress,
        finish,
    ):
        from ..demo.tour import run_demo

        finish(run_demo(folder, progress))
