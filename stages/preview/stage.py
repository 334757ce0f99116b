"""preview: makes pictures of stored latents, sheets and strips of them, and the run's page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ...cache.errors import Damaged, QeditError, WrongUse
from ...cache.files.atomic import sweep_tree
from ...config.configuration import Configuration
from ..models.checkpoint.checkpoint import open_checkpoint
from ..run_output.page import PAGE_FILE, write_page
from ..run_output.previews import Stored, stored_previews
from ..samples.table import picture_folders
from ..stage import Outcome, Progress

STAGE = "preview"


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
    step: int | None = None,
) -> Outcome:
    """Make the picture of every preview that has none, and what shows them together.

    Args:
        step: make the pictures of this step alone.

    Raises:
        QeditError: the device has too little memory.
        WrongUse: there are previews, and none of `step`.
    """
    from .drift import bring_drift_up_to_date
    from .pictures import Sources, is_current
    from .sheets import bring_sheets_up_to_date

    started = time.monotonic()
    output_dir = configuration.settings.output_dir
    wanted = list(stored_previews(output_dir, step=step))
    if not wanted:
        _say_what_there_is(output_dir, progress, step=step)
    missing = [stored for stored in wanted if not is_current(stored)]
    sheets, left = [], [] if dry_run else missing
    if not dry_run:
        sweep_tree(output_dir)
        while left:
            _decode(configuration, progress, missing=left, device=device)
            left = _stored_since(output_dir, step=step, known=wanted)
            wanted, missing = [*wanted, *left], [*missing, *left]
        sources = Sources(output_dir, picture_folders(configuration), progress.warn)
        shown = [stored for stored in stored_previews(output_dir) if is_current(stored)]
        sheets = bring_sheets_up_to_date(output_dir, shown, sources)
        bring_drift_up_to_date(output_dir, shown, sources)
        if output_dir.is_dir():
            write_page(configuration)
    return Outcome(
        stage=STAGE,
        wanted=len(wanted),
        kept=len(wanted) - len(missing),
        computed=0 if dry_run else len(missing),
        failed=0,
        seconds=time.monotonic() - started,
        where=str(output_dir / PAGE_FILE),
        unit="pictures",
        facts={"sheets": [str(path) for path in sheets]},
        lines=(f"{sheets[-1]}", f"{output_dir / PAGE_FILE}") if sheets else (),
    )


def _say_what_there_is(output_dir: Path, progress: Progress, *, step: int | None) -> None:
    """Name the steps that have previews; if none has, say which command makes them.

    Raises:
        WrongUse: there are previews, and none of `step`.
    """
    steps = sorted({stored.step for stored in stored_previews(output_dir)})
    if not steps:
        progress.say(f"{output_dir} holds no previews yet. `qedit train` makes them.")
        return
    raise WrongUse(
        f"{output_dir} holds no previews of step {step}.",
        f"There are some of the steps {', '.join(map(str, steps))}.",
    )


def _stored_since(output_dir: Path, *, step: int | None, known: Sequence[Stored]) -> list[Stored]:
    """Return the previews stored meanwhile: training starts no second `preview` beside this one."""
    from .pictures import is_current

    paths = {stored.path for stored in known}
    found = stored_previews(output_dir, step=step)
    return [stored for stored in found if stored.path not in paths and not is_current(stored)]


def _decode(
    configuration: Configuration, progress: Progress, *, missing: Sequence[Stored], device: str
) -> None:
    import torch

    from ..models.device import best_device
    from ..models.vae import LatentEncoder
    from ..pictures.images import picture_of
    from .pictures import is_current, save_preview

    vae = LatentEncoder.load(open_checkpoint(configuration.settings), device=best_device(device))
    with progress.bar(len(missing), STAGE, unit="picture") as advance:
        for stored in missing:
            # another process may have made it in the meantime
            if not is_current(stored):
                try:
                    pixels = vae.decode(stored.latents().float())
                except Damaged as error:
                    progress.warn(f"{error.what} {error.do}")
                    continue
                except torch.OutOfMemoryError as error:
                    raise QeditError(
                        f"No memory on {best_device(device)} to decode {stored.path}.",
                        "Use another one: `qedit preview --device cpu`.",
                    ) from error
                save_preview(picture_of(pixels[0].numpy()), stored)
            advance(1)
