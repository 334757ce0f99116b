"""The whole chain on a tiny model: pictures in, a LoRA out, and pictures of what it learned."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import WrongUse
from ...cache.files.atomic import new_file, write_json, write_text
from ...config.configuration import Configuration
from ...config.loading import load
from ...stages.models.lora.lora_file import LORA_FILE
from ...stages.models.tiny.tiny import make_tiny
from ...stages.run_output.metrics_file import read_metrics
from ...stages.run_output.page import PAGE_FILE
from ...stages.run_output.previews import SHEET_FILE, step_folder
from ...stages.stage import Outcome, Progress
from ..runner import ORDER, run_stages
from ..terminal.output import duration
from .pictures import draw_demo_pictures, folders_of

VAE_AREA = 128 * 128
VL_AREA = 112 * 112


@dataclass(frozen=True)
class Chapter:
    """One of the demo's runs: a flavour, and the number of references of each main dataset."""

    flavour: str
    datasets: Mapping[str, int]
    steps: int = 200


CHAPTERS = (Chapter("edit-v1", {"one": 1}), Chapter("edit-v2", {"two": 2, "three": 3}))


def run_demo(folder: Path, progress: Progress) -> dict[str, Any]:
    """Run every chapter in `folder`; return what was made, for `--json`.

    Raises:
        WrongUse: `folder` is a file, or holds something that is not the demo's.
    """
    started = time.monotonic()
    import torch

    torch.set_num_threads(1)  # on matrices this small, threads wait longer than they work
    _enter(folder)
    progress.say(f"Working in {folder}. The same command again goes on, or finds all done.")
    draw_demo_pictures(Path("pictures"))
    chapters = [_run_chapter(chapter, progress) for chapter in CHAPTERS]
    progress.say("")
    for chapter in chapters:
        first, last = chapter["loss_before"], chapter["loss_after"]
        progress.say(
            f"{chapter['flavour']}: loss {first:.3f} -> {last:.3f}, LoRA {folder / chapter['lora']}"
        )
        progress.say(f"         loss curve {folder / chapter['loss_curve']}")
        progress.say(f"         reference | before | after | target {folder / chapter['sheet']}")
        progress.say(f"         the run, with its previews, as a page {folder / chapter['page']}")
    seconds = time.monotonic() - started
    progress.say(f"Done in {duration(seconds)}.")
    progress.say(
        "Next, your own pictures: copy "
        f"{folder / CHAPTERS[0].flavour}/config.json and multidatabackend.json beside them."
    )
    return {
        "stage": "demo",
        "seconds": round(seconds, 3),
        "where": str(folder),
        "chapters": chapters,
    }


def _enter(folder: Path) -> None:
    mark = folder / "made-by-qedit-demo"
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(
            f"{folder} is there already and was not made by the demo.",
            "Choose another folder: qedit demo --dir another-folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not Path(mark.name).is_file():
        write_text(Path(mark.name), "This folder was made by `qedit demo`; delete it at will.\n")


def _run_chapter(chapter: Chapter, progress: Progress) -> dict[str, Any]:
    progress.say(f"\n{chapter.flavour}")
    make_tiny(
        Path("models") / chapter.flavour,
        chapter.flavour,
        vae_area=VAE_AREA,
        vl_area=VL_AREA,
        sighted=True,
    )
    home = Path(chapter.flavour)
    home.mkdir(exist_ok=True)
    _write_if_new(home / "config.json", settings_of(chapter))
    _write_if_new(home / "multidatabackend.json", datasets_of(chapter))
    configuration = load(home / "config.json", home / "multidatabackend.json")
    # pictures of previews are made at the end and not beside the training: two cores are few
    outcomes = run_stages(
        (*ORDER, "preview"), configuration, progress, options={"train": {"decodes": False}}
    )
    return {"flavour": chapter.flavour} | _show(configuration, home, outcomes)


def _write_if_new(path: Path, value: object) -> None:
    """Write `value` where there is no file: one that the user has changed is theirs."""
    if not path.exists():
        write_json(path, value)


def settings_of(chapter: Chapter) -> dict[str, Any]:
    """Return the chapter's config.json."""
    return {
        "model_type": "lora",
        "model_family": "qwen_image",
        "model_flavour": chapter.flavour,
        "pretrained_model_name_or_path": f"models/{chapter.flavour}",
        "output_dir": f"output/{chapter.flavour}",
        "cache_dir": "cache",
        "data_backend_config": f"{chapter.flavour}/multidatabackend.json",
        "mixed_precision": "no",
        "text_encoder_dtype": "fp32",
        "train_batch_size": 4,
        "max_train_steps": chapter.steps,
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 20,
        "lora_rank": 32,
        "lora_target_modules": "all-linear",
        "gradient_checkpointing": False,
        "checkpoint_step_interval": 100,
        "validation_step_interval": 100,
        "validation_resolution": round(VAE_AREA**0.5),
        "validation_num_inference_steps": 12,
        "validation_guidance": 1.0,
        "num_eval_images": 3,
        "seed": 42,
    }


def datasets_of(chapter: Chapter) -> list[dict[str, Any]]:
    """Return the chapter's multidatabackend.json."""
    entries: list[dict[str, Any]] = []
    for name, count in chapter.datasets.items():
        edited, *references = folders_of(count)
        ids = [f"{name}-{Path(folder).name}" for folder in references]
        entries.append(
            {"id": name, **_local(edited), "caption_strategy": "textfile", "conditioning_data": ids}
        )
        entries += [
            {
                "id": reference_id,
                **_local(folder),
                "dataset_type": "conditioning",
                "conditioning_type": "reference_loose",
            }
            for reference_id, folder in zip(ids, references, strict=True)
        ]
    return entries


def _local(folder: str) -> dict[str, Any]:
    return {
        "type": "local",
        "instance_data_dir": f"pictures/{folder}",
        "resolution": round(VAE_AREA**0.5),
    }


def _show(configuration: Configuration, home: Path, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Draw the loss curve, again only when the run has gone on; return what `--json` says."""
    output, steps = configuration.settings.output_dir, configuration.settings.max_train_steps or 0
    curve = home / "loss.png"
    logged = (line["loss"] for line in read_metrics(output, having="loss"))
    losses = [loss for loss in logged if loss is not None]
    trained = any(outcome.stage == "train" and outcome.computed for outcome in outcomes)
    if trained or not curve.is_file():
        from .curves import draw_loss_curve

        title = f"{configuration.settings.model_flavour}, tiny"
        with new_file(curve) as file:
            draw_loss_curve(losses, title=title).save(file, format="PNG")
    tenth = max(1, len(losses) // 10)
    return {
        "lora": str(output / LORA_FILE),
        "loss_curve": str(curve),
        "sheet": str(step_folder(output, steps) / SHEET_FILE),
        "page": str(output / PAGE_FILE),
        "loss_before": sum(losses[:tenth]) / tenth,
        "loss_after": sum(losses[-tenth:]) / tenth,
        "stages": [outcome.stage for outcome in outcomes],
    }
