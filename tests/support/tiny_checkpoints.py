"""Makes tiny checkpoints, and measures how far two tensors are apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from qedit.config.settings import Settings
from qedit.stages.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qedit.stages.models.tiny.tiny import make_tiny


def model_settings(
    model_flavour: str | None = "edit-v2", checkpoint: str | None = None, **others: Any
) -> Settings:
    """The settings that say which model it is, unchecked; all others have their defaults."""
    named = {"model_flavour": model_flavour, "pretrained_model_name_or_path": checkpoint}
    return Settings.model_construct(**named, **others)


def tiny_copy(folder: Path, flavour: str, *, vae_area: int, vl_area: int) -> Path:
    """Do as `make_tiny` does, which takes longer, with the bytes of the first one of its kind."""
    areas = {"vae_area": vae_area, "vl_area": vl_area}
    if not folder.exists():
        for name, data in _tiny_files(flavour, **areas).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return make_tiny(folder, flavour, **areas)


@cache
def _tiny_files(flavour: str, *, vae_area: int, vl_area: int) -> dict[str, bytes]:
    with TemporaryDirectory() as scratch:
        folder = make_tiny(Path(scratch) / "tiny", flavour, vae_area=vae_area, vl_area=vl_area)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def opened(folder: Path, flavour: str = "edit-v2") -> Checkpoint:
    """The checkpoint of `flavour` that lies in `folder`."""
    return open_checkpoint(model_settings(flavour, str(folder)))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def relative(found: Tensor, true: Tensor) -> float:
    """The norm of the difference, relative to the norm of the true values."""
    return float((found.float() - true.float()).norm() / true.float().norm())
