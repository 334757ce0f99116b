"""example=NAME in place of the two files, and --tiny: the same example on a tiny model."""

from __future__ import annotations

from pathlib import Path

from ...cache.errors import WrongUse
from ...config.loading import load
from ...stages.stage import Progress

TINY_FOLDER = Path("qedit-tiny")
TINY_VAE_AREA = 128 * 128
TINY_VL_AREA = 112 * 112
TINY_STEPS = 100


def example_named(assignments: tuple[str, ...]) -> str | None:
    """Return the NAME of `example=NAME` on the command line, if it is there.

    Raises:
        WrongUse: anything else stands there.
    """
    name = None
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key != "example" or not value:
            raise WrongUse(
                f"'{assignment}' is not a command, an option or an example.",
                f"Type a setting as `--set {assignment}`, a shipped example as "
                "`example=qwen_image.edit-v1-lora`."
                if "=" in assignment
                else "`qedit --help` lists the commands and options.",
            )
        name = value
    return name


def tiny_sets(example: str, progress: Progress, *, dry_run: bool = False) -> tuple[str, ...]:
    """Make the tiny checkpoint and the demo's pictures; return the settings that use them.

    They lie in `qedit-tiny/` in the working directory. A dry run makes nothing.
    """
    from .pictures import draw_demo_pictures, folders_of

    configuration = load(None, None, sets=(), example=example)
    flavour = configuration.settings.model_flavour
    model = TINY_FOLDER / "models" / flavour
    pictures = TINY_FOLDER / "pictures"
    (main,) = configuration.main_datasets()
    references = configuration.references_of(main)
    if not dry_run:
        from ...stages.models.tiny.tiny import make_tiny

        make_tiny(model, flavour, vae_area=TINY_VAE_AREA, vl_area=TINY_VL_AREA, sighted=True)
        draw_demo_pictures(pictures)
        progress.say(f"Using the tiny model {model} and the pictures in {pictures}.")
    sets = {
        "pretrained_model_name_or_path": str(model),
        "cache_dir": str(TINY_FOLDER / "cache"),
        "output_dir": str(TINY_FOLDER / "output" / example),
        "base_model_precision": "no_change",
        "max_train_steps": str(TINY_STEPS),
        "validation_resolution": str(round(TINY_VAE_AREA**0.5)),
        "validation_num_inference_steps": "4",
        "num_eval_images": "2",
    }
    for dataset, folder in zip((main, *references), folders_of(len(references)), strict=True):
        sets[f"data.{dataset.id}.instance_data_dir"] = str(pictures / folder)
        sets[f"data.{dataset.id}.cache_dir_vae"] = str(TINY_FOLDER / "cache" / "vae" / dataset.id)
        sets[f"data.{dataset.id}.resolution"] = str(round(TINY_VAE_AREA**0.5))
    for dataset in configuration.datasets:
        if dataset.cache_dir:
            sets[f"data.{dataset.id}.cache_dir"] = str(TINY_FOLDER / dataset.cache_dir)
    return tuple(f"{key}={value}" for key, value in sets.items())
