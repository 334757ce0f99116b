"""Find out whose an output_dir is: that of a run with results, or another trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....config.settings import Settings
from ...models.lora.lora_file import LORA_FILE
from ...run_output.run_file import read_run
from .checkpoint import checkpoints, strangers
from .run_record import decisive, refuse_another_run, refuse_strangers


def begun_run(where: Path) -> dict[str, Any] | None:
    """Return the run that has made a checkpoint or a LoRA in this folder; None if there is none.

    One that came to nothing (out of memory, say) may be begun again with other settings.

    Raises:
        AnotherRecipe: what lies there was not made by qedit.
    """
    there, foreign, lora = read_run(where), strangers(where), where / LORA_FILE
    came_to_something = bool(checkpoints(where)) or lora.exists()
    if there is None and lora.exists() and not checkpoints(where):
        foreign.append(lora)
    if foreign:
        refuse_strangers(foreign, where=where)
    return there if came_to_something else None


def refuse_folder(settings: Settings) -> None:
    """Raise if the output_dir belongs to another training, as far as settings tell.

    Raises:
        AnotherRecipe: with every difference in words.
    """
    there = begun_run(settings.output_dir)
    if there is not None:
        now = {**there, "settings": decisive(settings)}
        refuse_another_run(there, now, where=settings.output_dir)
