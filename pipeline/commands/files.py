"""The commands that make files for people: LoRAs in other forms, first files, a demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import WrongUse
from ..terminal.options import (
    PATH,
    dry_run_option,
    shared_options,
    word_among,
    workplace_options,
)
from ..terminal.output import TerminalProgress, size
from ..terminal.run_command import configuration_of, reporting

if TYPE_CHECKING:
    from ...stages.models.lora.lora_file import Style


@click.command()
@click.argument("lora", required=False)
@shared_options
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
    help="With --merge, and of a DoRA for ComfyUI: the checkpoint it was trained on.",
)
@click.option("--to", type=PATH, help="The file (or folder) to write.")
@click.option(
    "--workflow",
    type=PATH,
    metavar="FILE.json",
    help="Write the graph for ComfyUI that shows it what training showed.",
)
def export(lora: str | None, workflow: Path | None, to: Path | None, **given: Any) -> None:
    """Write a LoRA as diffusers, ComfyUI or kohya's tools name it, or bake it into a transformer.

    LORA is a LoRA, DoRA or LoKr of any of these, or of names without a prefix, or a folder with a
    pytorch_lora_weights.safetensors, or (for ComfyUI) the folder of a transformer. Alphas are kept
    for kohya, folded in for the others.

    With --workflow, --config names the run, and LORA its file if that has got another name.
    """
    lora, given["assignments"] = word_among((lora, *given["assignments"]))
    with reporting(**given) as (progress, finish):
        if workflow is not None:
            finish(_workflow(lora, workflow, to, progress, given))
        elif lora is None or to is None:
            raise WrongUse(
                "export takes a LoRA, and --to FILE.",
                "Type `qedit export LORA --format comfyui --to FILE.safetensors`.",
            )
        else:
            finish(_exported(Path(lora), to, progress, **given))


def _exported(
    lora: Path,
    to: Path,
    progress: TerminalProgress,
    *,
    style: Style | None,
    merge: bool,
    base: Path | None,
    **_: Any,
) -> dict[str, Any]:
    """Write what `export` is to write to `to`; return what --json says of it."""
    from ...stages.export.lora_files import export_lora
    from ...stages.export.merge import (
        export_transformer,
        is_transformer,
        merge_lora,
        other_base_in_words,
    )
    from ...stages.models.lora.lora_file import LORA_FILE

    for_comfyui = style == "comfyui"
    about: dict[str, Any] = {"stage": "export", "format": style, "where": str(to), "merged": merge}
    if merge:
        if base is None or style not in (None, "comfyui"):
            raise WrongUse(
                "--merge writes a transformer: it takes --base, and no --format but comfyui.",
                "Type `qedit export LORA --merge --base CHECKPOINT --to FOLDER`.",
            )
        layers = merge_lora(lora, base, to, for_comfyui=for_comfyui)
        progress.say(f"Written: {to} (bfloat16, {layers} layers with the LoRA in them)")
    elif style is None:
        raise WrongUse(
            "Without --merge, export takes --format.",
            "Type `--format diffusers`, `comfyui` or `kohya`.",
        )
    elif for_comfyui and is_transformer(lora) and not (lora / LORA_FILE).is_file():
        export_transformer(lora, to)
        progress.say(_where_a_model_goes(to))
        return about | {"layers": 0}
    else:
        layers = export_lora(lora, to, style, base=base)
        progress.say(f"Written: {to} ({layers} layers, for {style})")
    if merge and for_comfyui:
        progress.say(_where_a_model_goes(to))
    if base is not None and (other := other_base_in_words(lora, base)):
        progress.warn(other)
    return about | {"layers": layers}


def _where_a_model_goes(file: Path) -> str:
    return f"{file} has {size(file.stat().st_size)}. Copy it to ComfyUI/models/diffusion_models/."


def _workflow(
    lora: str | None,
    file: Path,
    to: Path | None,
    progress: TerminalProgress,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Write the graph of a run to `file`; return what --json says of it."""
    if to is not None or given["style"] or given["merge"] or given["base"]:
        raise WrongUse(
            "--workflow writes a graph: it takes no --to, --format, --merge or --base.",
            "Type `qedit export --workflow FILE.json --config config.json`.",
        )
    from ...cache.files.atomic import write_json
    from ...stages.export.workflow import model_of, workflow
    from ...stages.stores.run import Run

    if file.suffix != ".json":
        raise WrongUse(f"--workflow {file} is no .json file.", f"Type `--workflow {file}.json`.")
    if file.exists():
        raise WrongUse(
            f"--workflow {file} is there already.", "Choose another file, or move it away."
        )
    run = Run(configuration_of(progress, dry_run=True, **given))
    model = Path(lora).name if lora else model_of(run)
    write_json(file, workflow(run, model))
    progress.say(f"Written: {file}. Open it in ComfyUI; a note in it says which files it needs.")
    return {"stage": "export", "workflow": str(file), "model": model, "where": str(file)}


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
