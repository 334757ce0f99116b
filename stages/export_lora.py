"""export: a LoRA file under the names that another tool reads."""

from __future__ import annotations

from pathlib import Path

from ..cache.atomic import write_bytes
from ..cache.errors import WrongUse
from .models.lora_file import Lora, Style, as_file, read_lora


def export_lora(source: Path, to: Path, style: Style) -> Lora:
    """Write the LoRA `source`, of whatever style, to the file `to` in `style`.

    Raises:
        WrongUse: `source` is no LoRA, or `to` is there already or no .safetensors.
    """
    if to.suffix != ".safetensors":
        raise WrongUse(f"--to {to} is no .safetensors file.", f"Say `--to {to}.safetensors`.")
    if to.exists():
        raise WrongUse(f"{to} is there already.", "Choose another file, or move it away.")
    lora = read_lora(source)
    write_bytes(to, as_file(lora, style))
    return lora
