"""The LoRA that `init_lora` names, read before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....cache.errors import WrongUse
from ....cache.files.fingerprint import digest_file
from ....config.settings import Settings
from ...models.lora.lora_file import Lora, lora_path, read_lora
from ...run_output.run_file import read_run
from ..state.checkpoint import checkpoint_to_resume, read_state


def read_initial_lora(settings: Settings) -> Lora | None:
    """Return the LoRA that `init_lora` names; None where it names none.

    Raises:
        WrongUse: it cannot be read, or has a higher rank than `lora_rank`.
    """
    if settings.init_lora is None:
        return None
    lora = read_lora(Path(settings.init_lora).expanduser())
    if max(lora.ranks) > settings.lora_rank:
        ranks = ", ".join(str(rank) for rank in sorted(lora.ranks))
        raise WrongUse(
            f"`init_lora`: {settings.init_lora} is of rank {ranks}, and `lora_rank` is "
            f"{settings.lora_rank}.",
            f"Type `--set lora_rank={max(lora.ranks)}` or more, or give another LoRA.",
        )
    return lora


def initial_lora_digest(settings: Settings) -> str | None:
    """Return the digest of the file that `init_lora` names; None where there is none.

    Of a run that goes on with the same key it is what it was: the file is no longer read, and
    may hold something else by now.
    """
    if settings.init_lora is None:
        return None
    begin = checkpoint_to_resume(settings.output_dir, settings.resume_from_checkpoint)
    if begin is not None:
        run = read_state(begin)["run"]
        known: str | None = run.get("start")
        # the folder says how the file was called last, the checkpoint how when it was written
        for known_run in (run, read_run(settings.output_dir) or {}):
            if known_run.get("start") == known and _named_in(known_run) == settings.init_lora:
                return known
    path = lora_path(Path(settings.init_lora).expanduser())
    return digest_file(path) if path.is_file() else None


def _named_in(run: Mapping[str, Any]) -> str | None:
    named: str | None = run.get("settings", {}).get("init_lora")
    return named
