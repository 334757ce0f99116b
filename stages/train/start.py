"""What a run's LoRA begins as, looked at before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from ...cache.errors import WrongUse
from ...config.settings import Settings
from ..models.lora_file import Lora, read_lora


def start_of(settings: Settings) -> Lora | None:
    """The LoRA that `init_lora` names; None where it names none.

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
            f"Say `--set lora_rank={max(lora.ranks)}` or more, or give another LoRA.",
        )
    return lora
